"""Files that are read so that they are in memory when somebody needs them."""

import threading
from pathlib import Path

from comfy_runner.runs.page_cache import CHUNK, free_memory, read_ahead


def test_only_as_much_is_read_as_fits(tmp_path: Path) -> None:
    sizes = {"a": 600, "b": 500, "c": 400}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    paths = [tmp_path / name for name in ("a", "again", "b", "gone", "c")]
    found = read_ahead(paths, 1000, threading.Event())
    assert (found.files, found.size, found.too_big, found.stopped) == (2, 1000, ("b",), False)
    assert "2 files, 1.0 kB, read" in str(found)
    assert str(found).endswith("left out, for they would take too much memory: b.")


def test_reading_ends_when_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (CHUNK + 1))
    stopped = threading.Event()
    stopped.set()
    found = read_ahead([tmp_path / "a"], 2 * CHUNK, stopped)
    assert (found.files, found.size, found.stopped) == (0, 0, True)
    assert "until it was stopped" in str(found)


def test_a_container_has_no_more_free_memory_than_it_may_use(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (tmp_path / "proc" / "self").mkdir(parents=True)
    told = "MemTotal: 800 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(told)
    assert free_memory(tmp_path) == 600 * 1024
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path) == 1000
