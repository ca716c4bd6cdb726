import re
import subprocess
import sys

import pytest

from limbeck.core import sources
from limbeck.core.errors import UnknownNameError
from limbeck.core.sources import source_hash


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three files, of which ``a`` imports ``b`` and nobody ``c``."""
    folder = tmp_path / "limbeck"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "a.py").write_text("from limbeck.sub import b\nimport os\n")
    (folder / "sub" / "b.py").write_text("VALUE = 1\n")
    (folder / "c.py").write_text("VALUE = 2\n")
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    return folder


def test_a_hash_is_of_the_file_itself_and_of_what_it_imports(package):
    before = source_hash("limbeck.a")
    assert re.fullmatch("[0-9a-f]{64}", before)
    (package / "c.py").write_text("VALUE = 3\n")
    assert source_hash("limbeck.a") == before
    (package / "sub" / "b.py").write_text("VALUE = 3\n")
    changed = source_hash("limbeck.a")
    assert changed != before
    (package / "a.py").write_text("from limbeck.sub import b\n")
    assert source_hash("limbeck.a") not in (before, changed)


def test_modules_that_import_each_other_have_hashes(package):
    (package / "sub" / "b.py").write_text("import limbeck.a\n")
    assert source_hash("limbeck.a") != source_hash("limbeck.c")


def test_no_such_module_is_an_error():
    with pytest.raises(UnknownNameError, match=r"limbeck\.nothing"):
        source_hash("limbeck.nothing")


def test_a_methods_hash_needs_no_torch():
    code = (
        "import sys; from limbeck.core.sources import source_hash; "
        "source_hash('limbeck.methods.output.kd'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
