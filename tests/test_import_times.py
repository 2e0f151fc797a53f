"""What is measured of imports, in this process; in ComfyUI's: test_booting.py."""

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from types import SimpleNamespace

import pytest

from comfy_runner.comfyui import bytecode, import_times
from comfy_runner.comfyui.import_times import ImportTimes, Meter
from comfy_runner.comfyui.lazy import Deferred


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from: `outer_x` imports `inner_x.deep` and `inner_x.flat`."""
    folder = tmp_path / "library"
    (folder / "inner_x").mkdir(parents=True)
    (folder / "inner_x" / "__init__.py").write_text("")
    (folder / "inner_x" / "deep.py").write_text("import inner_x.flat")
    (folder / "inner_x" / "flat.py").write_text("import this_is_part_of_the_tree_x")
    (folder / "outer_x.py").write_text("import inner_x.deep, inner_x.flat")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "this_is_part_of_the_tree_x.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(tmp_path / "tree"))
    before = set(sys.modules)
    yield folder
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def measured(folder: Path, *names: str, pack: str = "", deferred: str = "") -> ImportTimes:
    """What is measured while these modules are imported."""
    packs = SimpleNamespace(told=pack)
    written = folder.with_name("written.json")
    meter = Meter(str(written), str(folder.with_name("tree")), packs, [Deferred(deferred, "")])
    meter.start()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        meter.stop()
    return import_times.read(written)


def test_modules_are_counted_by_package_and_by_node_pack(library: Path) -> None:
    found = measured(library, "outer_x", pack="my pack")
    assert {(each.name, each.pack): each.modules for each in found.packages} == {
        ("outer_x", "my pack"): 1,
        ("inner_x", "my pack"): 3,
        ("ComfyUI", "my pack"): 1,
    }
    assert found.cpu > 0
    assert found.deferrable == ()


def test_what_could_be_put_off_counts_once_with_all_that_it_imports(library: Path) -> None:
    found = measured(library, "outer_x", pack="p", deferred="inner_x.deep inner_x.flat")
    assert [(each.name, each.pack) for each in found.deferrable] == [("inner_x.deep", "p")]
    own = sum(each.seconds for each in found.packages if each.name in ("ComfyUI", "inner_x"))
    assert found.deferrable[0].seconds <= own


def test_only_what_has_no_bytecode_was_compiled(library: Path) -> None:
    assert bytecode.compile_folder(library / "inner_x") == ""
    found = measured(library, "outer_x")
    assert {each.name: each.modules for each in found.compiled} == {"outer_x": 1, "ComfyUI": 1}
    files = {each.name: each.file for each in found.compiled}
    assert files["outer_x"] == str(library / "outer_x.py")


def test_the_loaders_are_as_before_afterwards(library: Path) -> None:
    loaders = (SourceFileLoader, ExtensionFileLoader)
    before = [dict(vars(loader)) for loader in loaders]
    measured(library, "outer_x")
    assert [dict(vars(loader)) for loader in loaders] == before


def test_a_module_that_fails_is_measured_and_fails(library: Path) -> None:
    (library / "broken_x.py").write_text("import inner_x.deep\nraise OSError('no library')")
    packs = SimpleNamespace(told="")
    meter = Meter(str(library / "written.json"), str(library), packs, [])
    meter.start()
    try:
        with pytest.raises(OSError, match="no library"):
            importlib.import_module("broken_x")
    finally:
        meter.stop()
    assert json.loads((library / "written.json").read_text())["packages"]


def test_threads_do_not_count_for_each_other(library: Path) -> None:
    """A module that waits for a thread, which imports another, is not relieved of its seconds."""
    (library / "waiting_x.py").write_text(
        "import threading, importlib\n"
        "thread = threading.Thread(target=importlib.import_module, args=('inner_x.deep',))\n"
        "thread.start(); thread.join()"
    )
    threads = threading.active_count()
    found = measured(library, "waiting_x")
    seconds = {each.name: each.seconds for each in found.packages}
    assert seconds["waiting_x"] >= seconds["inner_x"]
    assert threading.active_count() == threads


def test_a_system_that_does_not_tell_what_came_from_the_disk(tmp_path: Path) -> None:
    assert import_times.read_from_disk(tmp_path / "io") is None
    (tmp_path / "io").write_text("rchar: 9\nread_bytes: 4096\nwrite_bytes: 1\n")
    assert import_times.read_from_disk(tmp_path / "io") == 4096
    (tmp_path / "io").write_text("rchar: 9\n")
    assert import_times.read_from_disk(tmp_path / "io") is None
