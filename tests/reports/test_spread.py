import math

import pytest

from limbeck.reports.spread import spread


def test_spread_is_the_sample_standard_deviation():
    """Divisor n - 1, by hand: deviations -1, 0, 1 of (1, 2, 3) have squares that add up to 2."""
    assert spread([1.0, 2.0, 3.0]).sd == pytest.approx(math.sqrt(2 / (3 - 1)))
    assert spread([1.0, 2.0, 3.0]).mean == 2.0


def test_one_value_has_no_standard_deviation():
    assert spread([0.5]).sd is None


def test_the_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        spread([])
