"""A project that is made again: edits stay or are told, and it changes whole or not at all."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput, MachineError
from comfy_runner.publishing import marks
from comfy_runner.publishing.keeping import (
    RECORD,
    Change,
    Choices,
    Content,
    Record,
    digest,
    merged,
    plan,
    read_record,
)
from comfy_runner.publishing.replacing import ADDED, UNDO, alone, apply, restore

CHOICES = Choices(
    name="Nice",
    model="me/nice",
    inputs={"prompt": "6.text"},
    fixed={"7.cfg": "1.0"},
    outputs=("9",),
    choices={"lora": "folder:loras"},
)
PLACE = "# begin: yours\n{}# end: yours\n"

lines = st.lists(st.sampled_from(["a = 1\n", "\n", "    b()\n", "# begin: mine\n"]), max_size=4)


def make(folder: Path, files: Mapping[str, Content], *, overwrite: bool = False) -> Change:
    """What `new` does with its files."""
    record = read_record(folder)
    carried, faults = merged(folder, files)
    assert overwrite or not faults
    change = plan(folder, record, carried, overwrite=overwrite)
    apply(folder, change, Record(CHOICES, (), change.digests))
    return change


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(folder: Path, files: Mapping[str, Content]) -> dict[str, str]:
    """What is refused, path to code."""
    with pytest.raises(InvalidInput) as caught:
        make(folder, files)
    return {problem.input: problem.code for problem in caught.value.problems}


@given(lines, lines, lines, lines)
def test_what_is_the_authors_comes_into_the_new_text_and_nothing_else(
    one: list[str], two: list[str], before: list[str], after: list[str]
) -> None:
    first, second = "".join(one), "".join(two)
    old = f"old\n{PLACE.format(first)}old\n{PLACE.format(second)}"
    new = f"{''.join(before)}{PLACE.format('lost()\n')}{''.join(after)}{PLACE.format('')}"
    made = marks.carried(old, new)
    if first or second:
        begin, end = "".join(before), "".join(after)
        assert made == f"{begin}{PLACE.format(first)}{end}{PLACE.format(second)}"
        assert marks.skeleton(made) == marks.skeleton(new)
    else:
        assert made == new


@pytest.mark.parametrize(
    ("old", "why"),
    [
        ("# begin: yours\nx\n", "no end"),
        ("# end: yours\n", "no beginning"),
        ("# begin: yours\n# begin: yours\n# end: yours\n", "without an end"),
        (PLACE.format("x\n"), "1 marked places, the new one 2"),
    ],
)
def test_marks_that_do_not_fit_are_told(old: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        marks.carried(old, PLACE.format("") * 2)


def test_marks_of_markdown_and_indented_ones_count() -> None:
    html = "<!-- begin: yours -->\nmine\n<!-- end: yours -->\n"
    assert marks.carried(html, html.replace("mine\n", "")) == html
    assert marks.skeleton("  # begin: yours\n  x\n  # end: yours\n") == (
        "  # begin: yours\n  # end: yours\n"
    )


def test_the_digest_leaves_out_what_others_may_change() -> None:
    marker = "# choices from folder:loras, written anew by comfy-runner schema\n"
    one = f'import x\n{PLACE.format("")}\n{marker}LORA_CHOICES = ["a", "b"]\n\n\nclass A: ...\n'
    two = (
        f'import x\n{PLACE.format("y = 2\n")}\n{marker}LORA_CHOICES = [\n    "a[1]",\n]\n\n\n'
        "class A: ...\n"
    )
    assert digest("predict.py", one.encode()) == digest("predict.py", two.encode())
    assert digest("other.py", one.encode()) != digest("other.py", two.encode())
    assert digest("predict.py", b"class B: ...\n") != digest("predict.py", b"class A: ...\n")


def test_the_record_says_what_was_chosen(tmp_path: Path) -> None:
    record = Record(CHOICES, ("loras/x.safetensors",), {"a.txt": "00"})
    (tmp_path / RECORD).write_text(record.to_json())
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "new") is None


def test_a_folder_with_only_a_fresh_repository_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    make(tmp_path, {"a.txt": b"1"})
    assert (tmp_path / "a.txt").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "comfy-runner.json"),
        ("[]", "as comfy-runner new writes it"),
        ('{"version": 2}', "version 2"),
        (Record(CHOICES, (), {"../x": "0"}).to_json(), "as comfy-runner new writes it"),
        (Record(CHOICES, (), {"/etc/x": "0"}).to_json(), "as comfy-runner new writes it"),
        (Record(CHOICES, (), {"//etc/x": "0"}).to_json(), "as comfy-runner new writes it"),
        (Record(CHOICES, (), {".GIT/hooks/x": "0"}).to_json(), "as comfy-runner new writes it"),
    ],
)
def test_a_record_that_does_not_hold_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(InvalidInput, match=says):
        read_record(tmp_path)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    with pytest.raises(InvalidInput, match="not empty"):
        read_record(tmp_path)
    with pytest.raises(InvalidInput, match="not empty"):
        read_record(tmp_path / "theirs")


def test_files_appear_change_and_go_and_all_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "project"
    make(folder, {"a.txt": b"1", "gone/b.txt": b"2", "script/test": b"#!/bin/sh\n"})
    (folder / "theirs").write_text("mine")
    copied = tmp_path / "source"
    copied.write_bytes(b"copied")
    change = make(folder, {"a.txt": b"new", "c/d.txt": copied, "script/test": b"#!/bin/sh\n"})
    assert set(change.write) == {"a.txt", "c/d.txt"}
    found = tree(folder)
    assert found.pop(RECORD)
    assert found == {
        "a.txt": b"new",
        "c/d.txt": b"copied",
        "script/test": b"#!/bin/sh\n",
        "theirs": b"mine",
    }
    assert not (folder / "gone").exists()
    assert (folder / "script" / "test").stat().st_mode & 0o100
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "source"}


def test_edits_in_marked_places_are_carried_and_others_refused(tmp_path: Path) -> None:
    old = {name: f"one\n{PLACE.format('')}".encode() for name in ("predict.py", "cog.yaml")}
    make(tmp_path, {**old, "a.txt": b"1", "gone.txt": b"2"})
    (tmp_path / "predict.py").write_text(f"one\n{PLACE.format('mine()\n')}")
    new = {name: f"two\n{PLACE.format('')}".encode() for name in old}
    make(tmp_path, {**new, "a.txt": b"1", "gone.txt": b"2"})
    assert (tmp_path / "predict.py").read_text() == f"two\n{PLACE.format('mine()\n')}"

    (tmp_path / "cog.yaml").write_text(f"edited\n{PLACE.format('')}")
    (tmp_path / "gone.txt").write_text("edited")
    (tmp_path / "a.txt").write_text("edited")
    before = tree(tmp_path)
    third = {**{name: text.replace(b"two", b"three") for name, text in new.items()}, "a.txt": b"3"}
    refused = refusal(tmp_path, third)
    assert refused == {"cog.yaml": "edited", "gone.txt": "edited", "a.txt": "edited"}
    assert tree(tmp_path) == before

    (tmp_path / "a.txt.orig").write_text("of another time")
    make(tmp_path, third, overwrite=True)
    after = tree(tmp_path)
    assert after["cog.yaml"] == third["cog.yaml"]
    assert after["cog.yaml.orig"] == before["cog.yaml"]
    assert after["a.txt.orig"] == b"of another time"
    assert after["a.txt.orig2"] == after["gone.txt.orig"] == b"edited"
    assert "gone.txt" not in after


def test_an_edited_file_that_would_be_as_last_time_stays(tmp_path: Path) -> None:
    make(tmp_path, {"a.txt": b"1", "b.txt": b"1"})
    (tmp_path / "a.txt").write_text("edited")
    change = make(tmp_path, {"a.txt": b"1", "b.txt": b"2"})
    assert change.keep == ("a.txt",)
    assert (tmp_path / "a.txt").read_text() == "edited"
    assert refusal(tmp_path, {"a.txt": b"3", "b.txt": b"2"}) == {"a.txt": "edited"}


def test_a_deleted_file_comes_back(tmp_path: Path) -> None:
    make(tmp_path, {"a.txt": b"1"})
    (tmp_path / "a.txt").unlink()
    make(tmp_path, {"a.txt": b"1"})
    assert (tmp_path / "a.txt").read_bytes() == b"1"


def test_what_other_commands_write_is_no_edit(tmp_path: Path) -> None:
    make(tmp_path, {"weights_manifest.json": b"{}"})
    (tmp_path / "weights_manifest.json").write_text('{"locked": 1}')
    make(tmp_path, {"weights_manifest.json": b'{"merged": 1}'})
    assert (tmp_path / "weights_manifest.json").read_text() == '{"merged": 1}'


def test_what_stands_in_the_way_is_told_and_never_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "project", tmp_path / "outside"
    outside.mkdir()
    make(folder, {"a.txt": b"1"})
    (folder / "b.txt").mkdir()
    (folder / "c").touch()
    (folder / "d").symlink_to(outside)
    (folder / "e.txt").write_text("the author's own")
    wanted: dict[str, Content] = dict.fromkeys(("a.txt", "b.txt", "c/c.txt", "d/d.txt"), b"1")
    wanted["e.txt"] = b"2"
    refused = refusal(folder, wanted)
    assert refused == {
        "b.txt": "in_the_way",
        "c/c.txt": "in_the_way",
        "d/d.txt": "in_the_way",
        "e.txt": "edited",
    }
    assert list(outside.iterdir()) == []


def test_broken_marks_are_a_problem_and_nothing_is_taken_of_the_file(tmp_path: Path) -> None:
    make(tmp_path, {"predict.py": PLACE.format("").encode()})
    (tmp_path / "predict.py").write_text("# begin: yours\nmine\n")
    files, problems = merged(tmp_path, {"predict.py": PLACE.format("").encode()})
    assert [(each.code, each.input) for each in problems] == [("bad_marks", "predict.py")]
    assert files == {"predict.py": PLACE.format("").encode()}


def test_a_failure_half_way_leaves_the_old_project(tmp_path: Path) -> None:
    make(tmp_path, {"a.txt": b"1", "b/c.txt": b"2"})
    before = tree(tmp_path)
    impossible = Change({"a.txt": b"new", "d.txt": b"new"}, ("b/c.txt", "b/c.txt"), (), (), {})
    with pytest.raises(InvalidInput, match="Nothing was changed"):
        apply(tmp_path, impossible, Record(CHOICES))
    assert tree(tmp_path) == before


def test_a_source_that_is_gone_leaves_no_trace(tmp_path: Path) -> None:
    change = Change({"a.txt": tmp_path / "gone"}, (), (), (), {})
    with pytest.raises(InvalidInput, match="gone"):
        apply(tmp_path / "project", change, Record(CHOICES))
    assert list(tmp_path.iterdir()) == []


CRASH = """
import os, sys
from pathlib import Path
from comfy_runner.publishing.keeping import Change, Choices, Record
from comfy_runner.publishing.replacing import apply

folder, left = Path(sys.argv[1]), int(sys.argv[2])


def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir") and str(folder) in str(arguments[0]):
        left -= 1
        if left < 0:
            os._exit(9)


sys.addaudithook(count)
change = Change({"a.txt": b"new", "d/e.txt": b"new"}, ("b/c.txt",), (), ("a.txt",), {"a.txt": "1"})
apply(folder, change, Record(Choices()))
"""


def test_a_crash_at_any_step_is_undone_or_done(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    make(origin, {"a.txt": b"1", "b/c.txt": b"2"})
    before = tree(origin)
    done = {"a.txt": b"new", "a.txt.orig": b"1", "d/e.txt": b"new"}
    states = []
    for step in range(100):
        folder = tmp_path / f"at{step}"
        shutil.copytree(origin, folder)
        command = [sys.executable, "-c", CRASH, str(folder), str(step)]
        code = subprocess.run(command, timeout=60, check=False).returncode
        assert code in (0, 9)
        restore(folder)
        found = tree(folder)
        states.append("old" if found == before else "new")
        if found != before:
            found.pop(RECORD)
            assert found == done
            assert not (folder / "b").exists()
        assert not [path for path in folder.iterdir() if path.name.startswith(".comfy")]
        if code == 0:
            break
    assert states == sorted(states, reverse=True)  # first old, then new
    assert {"old", "new"} == {*states}
    assert len(states) > 6


def test_what_cannot_be_brought_back_is_kept_and_told(tmp_path: Path) -> None:
    (tmp_path / UNDO).mkdir()
    (tmp_path / UNDO / ADDED).write_text("no list")
    with pytest.raises(MachineError, match="still in"):
        restore(tmp_path)
    assert (tmp_path / UNDO / ADDED).exists()


def test_there_is_mostly_nothing_to_bring_back(tmp_path: Path) -> None:
    assert not restore(tmp_path)
    (tmp_path / UNDO / "files").mkdir(parents=True)
    assert not restore(tmp_path)
    assert not (tmp_path / UNDO).exists()
    assert json.loads(Record(CHOICES).to_json())["choices"]["name"] == "Nice"


@pytest.mark.parametrize("path", ["../mine", "{outside}/mine", "/{outside}/mine", "link/mine"])
def test_an_undo_from_elsewhere_removes_nothing_outside(tmp_path: Path, path: str) -> None:
    outside, project = tmp_path / "outside", tmp_path / "project"
    outside.mkdir()
    for place in (outside / "mine", tmp_path / "mine"):
        place.write_text("precious")
    (project / UNDO).mkdir(parents=True)
    (project / "link").symlink_to(outside)
    (project / UNDO / ADDED).write_text(json.dumps([path.format(outside=outside)]))
    with pytest.raises(MachineError, match=r"outside of the project|is a link"):
        restore(project)
    assert (outside / "mine").exists()
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("kept", ["files", "files/a.txt"])
def test_an_undo_from_elsewhere_reads_nothing_outside(tmp_path: Path, kept: str) -> None:
    outside, project = tmp_path / "outside", tmp_path / "project"
    outside.mkdir()
    (outside / "a.txt").write_text("secret")
    (project / UNDO / kept).parent.mkdir(parents=True)
    target = outside if kept == "files" else outside / "a.txt"
    (project / UNDO / kept).symlink_to(target)
    (project / UNDO / ADDED).write_text("[]")
    with pytest.raises(MachineError, match="is a link"):
        restore(project)
    assert not (project / "a.txt").exists()


def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    before = folder.stat().st_ino  # that of a shell which stands in it
    make(folder, {"a.txt": b"1"})
    assert folder.stat().st_ino == before
    assert (folder / "a.txt").read_bytes() == b"1"


def test_only_one_is_at_work_in_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(InvalidInput, match="at work"), alone(tmp_path):
        pass
    with alone(tmp_path), alone(tmp_path / "new"), alone(tmp_path / "new"):
        pass
    with pytest.raises(InvalidInput, match="cannot be read"), alone(tmp_path / ("n" * 300)):
        pass


def test_the_new_project_of_another_is_left_alone(tmp_path: Path) -> None:
    class Looking(Path):
        """A file; whoever reads it takes the folder above the project for a project, too."""

        def __fspath__(self) -> str:
            restore(tmp_path)
            return super().__fspath__()

    (tmp_path / "content").write_text("1")
    change = Change({"a.txt": Looking(tmp_path / "content")}, (), (), (), {})
    apply(tmp_path / "project", change, Record(CHOICES))
    assert (tmp_path / "project" / "a.txt").read_text() == "1"
