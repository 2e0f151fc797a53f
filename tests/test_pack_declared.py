"""What a pack's files say of requirements and classes, without running them."""

from pathlib import Path

import pytest
from fakes.git_repositories import write_files

from comfy_runner.packs.declared import examine

CLASSIC = """
from .more import EXTRA
raise SystemExit("never run")
NODE_CLASS_MAPPINGS = {"Fox": object, **EXTRA}
NODE_CLASS_MAPPINGS["Bear"] = object
NODE_CLASS_MAPPINGS.update({"Cat": object})
OTHER = {"No": object}
"""
ANNOTATED = 'NODE_CLASS_MAPPINGS: dict[str, type] = {"Dog": object}\nBAD = "\\d"\n'
NEW = """
class A(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="Elk", display_name="No")
"""


def test_classes_are_read_in_the_source(tmp_path: Path) -> None:
    tree = write_files(
        tmp_path,
        {
            "__init__.py": CLASSIC,
            "more.py": ANNOTATED,
            "new/nodes.py": NEW,
            "broken.py": "NODE_CLASS_MAPPINGS = {",
            "notes.txt": 'NODE_CLASS_MAPPINGS = {"No": 1}',
        },
    )
    found = examine(tree)
    assert found.classes == ("Bear", "Cat", "Dog", "Elk", "Fox")
    assert not found.has_script


def test_requirements_are_read_as_pip_reads_them(tmp_path: Path) -> None:
    tree = write_files(
        tmp_path,
        {
            "__init__.py": "",
            "requirements.txt": "\ufeff# comment\r\nnumpy>=1  # why\r\n\r\n-r more/others.txt\n"
            "tiny[x]==1 \\\n  ; python_version < '4'\nnumpy>=1\n-r ../../outside.txt\n"
            "--extra-index-url https://x.example/simple\ngit+https://x.example/a#egg=a\n"
            "pinned==1 --hash=sha256:00\n-e ./inner\n",
            "more/others.txt": "six\n-r others.txt\n",
            "pyproject.toml": '[project]\ndependencies = ["no"]\n',
            "install.py": "",
        },
    )
    found = examine(tree)
    assert found.requirements == (
        *("numpy>=1", "six", "tiny[x]==1    ; python_version < '4'"),
        *("git+https://x.example/a#egg=a", "pinned==1", "-e ./inner"),
    )
    assert found.has_script
    assert [note.split(",")[0] for note in found.notes] == [
        "Its requirements.txt includes '../../outside.txt'",
        "Its requirements.txt wants pip's option '--extra-index-url https://x.example/simple'",
    ]


def test_requirements_of_the_project_file_count_where_there_is_no_other(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"__init__.py": "", "pyproject.toml": '[project]\ndependencies = ["a>1", "b"]\n'}
    )
    assert examine(tmp_path).requirements == ("a>1", "b")


@pytest.mark.parametrize("text", ["[project]\nname = 'x'\n", "project = 1\n", "[tool.x]\n"])
def test_a_project_file_without_dependencies_asks_for_nothing(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, {"__init__.py": "", "pyproject.toml": text})
    found = examine(tmp_path)
    assert (found.requirements, found.notes) == ((), ())


def test_a_damaged_project_file_is_noted(tmp_path: Path) -> None:
    write_files(tmp_path, {"__init__.py": "", "pyproject.toml": "["})
    assert examine(tmp_path).notes[0].startswith("Its pyproject.toml cannot be read")


def test_files_that_are_made_to_break_a_reader_are_only_told(tmp_path: Path) -> None:
    tree = write_files(tmp_path / "a", {"requirements.txt": f"-r \0\n-r {'a' * 300}\nnumpy\n"})
    found = examine(tree)
    assert found.requirements == ("numpy",)
    assert [" which is not in the pack." in note for note in found.notes] == [True, True]
    deep = "[" * 5000 + "]" * 5000
    tree = write_files(tmp_path / "b", {"pyproject.toml": f"a = {deep}"})
    assert "pyproject.toml cannot be read" in examine(tree).notes[0]
