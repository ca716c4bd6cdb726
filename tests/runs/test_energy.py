import pytest

from limbeck.runs.energy import EnergyMeter


@pytest.fixture
def counters(tmp_path):
    """RAPL's folders: two packages, and a core domain within the first."""

    def write(name, value, span=1_000_000):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text(f"{span}\n")

    write("intel-rapl:0", 100)
    write("intel-rapl:0:0", 50)
    write("intel-rapl:1", 999_990)
    return write


def test_packages_are_added_up_and_what_lies_within_one_is_not(counters, tmp_path):
    with EnergyMeter(tmp_path) as meter:
        counters("intel-rapl:0", 500_100)
        counters("intel-rapl:0:0", 400_000)
    assert meter.joules == pytest.approx(0.5)
    assert meter.reason == ""
    assert meter.seconds > 0


def test_a_counter_that_starts_again_is_followed(counters, tmp_path):
    with EnergyMeter(tmp_path) as meter:
        counters("intel-rapl:1", 10)
    assert meter.joules == pytest.approx(20e-6)


def test_where_nothing_can_be_metered_it_is_said(tmp_path):
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.joules is None
    assert "shows no energy counters" in meter.reason


def test_a_counter_that_may_not_be_read_is_said(counters, tmp_path):
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.joules is None
    assert "cannot be read" in meter.reason
