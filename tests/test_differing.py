"""The difference of two models as it is shown."""

import io
import json
import sys
from pathlib import Path

import pytest

from comfy_runner.errors import InvalidInput
from comfy_runner.publishing.differing import read_schema, show_diff
from comfy_runner.serving import schema

TEXT = """
from cog import BaseRunner, Input

class Predictor(BaseRunner):
    def run(self, steps: int = Input(description="Steps.", ge=1, default=4)) -> str:
        pass
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The schema file of a model."""
    path = tmp_path / "old.json"
    path.write_text(schema.dumps(schema.generate(TEXT)), "utf-8")
    return path


def project(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "predict.py").write_text(text, "utf-8")
    return folder


def test_breaking_changes_are_printed_and_then_refused(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = project(tmp_path / "new", TEXT.replace("ge=1", "ge=2").replace("Steps.", "More."))
    with pytest.raises(InvalidInput, match="1 change can break calls that are right today"):
        show_diff(str(old), str(new))
    assert capsys.readouterr().out.splitlines() == [
        "! steps: Its minimum is 2 now, before 1.",
        "  steps: Its description is now: More.",
    ]


def test_compatible_changes_end_well(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = project(tmp_path / "new", TEXT.replace('description="Steps.", ', ""))
    show_diff(str(old), str(new))
    printed = capsys.readouterr()
    assert printed.out == "  steps: Its description is gone.\n"
    assert printed.err == "Note: input steps: It has no description. Say what it is for.\n"
    show_diff(str(old), str(old))
    assert capsys.readouterr().out == "No difference that a caller could notice.\n"


def test_a_program_gets_it_as_json(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = project(tmp_path / "new", TEXT.replace("steps", "count"))
    with pytest.raises(InvalidInput):
        show_diff(str(old), str(new), as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "breaking": True,
        "changes": [
            {"breaking": True, "input": "steps", "what": "It is gone."},
            {"breaking": False, "input": "count", "what": "It is new; its default is 4."},
        ],
        "lint": [],
    }


def test_a_schema_comes_from_many_places(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = schema.generate(TEXT)
    folder = project(tmp_path / "new", TEXT)
    built = tmp_path / "built"
    (built / ".cog").mkdir(parents=True)
    (built / schema.SCHEMA).write_bytes(old.read_bytes())
    for place in (old, folder, folder / "predict.py", built):
        assert read_schema(str(place), "OLD") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(old.read_bytes())))
    assert read_schema("-", "OLD") == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "OLD: It is not JSON"), (b"[]", "OLD: It is no JSON object"), (b"\xff", "not UTF-8")],
)
def test_what_is_no_schema_is_told_with_its_place(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=says):
        read_schema(str(tmp_path / "bad.json"), "OLD")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.cog/openapi_schema\.json cannot be read"):
        read_schema(str(tmp_path), "NEW")
    with pytest.raises(InvalidInput, match="Both OLD and NEW are standard input"):
        show_diff("-", "-")
