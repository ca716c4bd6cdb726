from pathlib import Path

import limbeck
from limbeck.runs.provenance import code_differences, code_version, sources_hash

ROOT = Path(limbeck.__file__).parent


def test_every_file_that_a_runs_numbers_depend_on_counts():
    sources = code_version().sources
    for name in ("runs/execute.py", "methods/output/kd.py", "engine/loop.py", "teacher.py"):
        assert name in sources
    assert not any(name.startswith(("cli/", "reports/", "recipes/")) for name in sources)
    assert len(sources_hash()) == 64


def test_the_same_code_does_not_differ_whatever_its_commit():
    version = code_version()
    assert code_differences(version, version.changed(commit="0" * 40)) == []


def test_what_differs_is_named():
    then = code_version()
    changed = then.sources | {"engine/loop.py": "other", "engine/new.py": "new"}
    packages = then.packages | {"torch": "1.0"}
    now = then.changed(sources=changed, packages=packages)
    first, second = code_differences(then, now)
    assert first == "limbeck's engine/loop.py, engine/new.py"
    assert second.startswith("torch (")
    assert second.endswith("then, 1.0 now)")


def test_many_files_are_counted():
    then = code_version()
    now = then.changed(sources=dict.fromkeys(then.sources, "other"))
    (phrase,) = code_differences(then, now)
    assert phrase.endswith(f"and {len(then.sources) - 5} more")


def test_the_users_own_networks_count_with_their_file(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("def make(num_classes): ...")
    name = f"{file}:make"
    then = code_version([name, "resnet20"])
    assert list(then.models) == [name]
    file.write_text("def make(num_classes): return 1")
    assert code_differences(then, code_version([name])) == [f"the file of {name}"]
