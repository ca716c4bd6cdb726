import subprocess
import sys

import pytest

import limbeck

# Each name meets freshly unloaded modules, as if it were the first to be asked for.
EACH_FIRST = """
import sys
import limbeck

for name in limbeck.__all__:
    for module in [module for module in sys.modules if module.startswith("limbeck.")]:
        del sys.modules[module]
    assert getattr(limbeck, name) is not None
    print(name)
"""


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'limbeck' has no attribute 'Teecher'"):
        _ = limbeck.Teecher


def test_whichever_name_comes_first_no_import_runs_in_a_circle():
    done = subprocess.run(
        [sys.executable, "-c", EACH_FIRST],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == limbeck.__all__, done.stderr


def test_completion_shows_the_public_names_alone():
    assert dir(limbeck) == sorted(limbeck.__all__)
