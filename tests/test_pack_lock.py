"""The lock of packs: read, written, and refused by entry."""

import json
from dataclasses import replace
from typing import Any

import pytest

from comfy_runner.errors import InvalidInput
from comfy_runner.packs.lock import (
    ArchiveSource,
    GitSource,
    LocalSource,
    LockedPack,
    PackLock,
    RegistrySource,
    check_name,
    parse,
    write,
)

COMMIT, SHA256 = "a1" * 20, "b2" * 32

PACKS = (
    LockedPack(
        name="fox",
        source=GitSource("https://github.com/a/fox", COMMIT, "main"),
        digest=SHA256,
        requirements=("numpy>=1", "tiny ; python_version < '4'"),
        leave_out=("torch",),
        classes=("Bear", "Fox"),
        imported=True,
        install_script=True,
    ),
    LockedPack(
        name="Bear", source=RegistrySource("bear", "1.2.0", "https://cdn.example/b.zip", SHA256)
    ),
    LockedPack(name="cat", source=ArchiveSource("https://example.com/cat.tar.gz", SHA256)),
    LockedPack(name="dog", source=LocalSource("../dog")),
    LockedPack(name="elk", source=GitSource("git@host.example:a/elk.git", COMMIT)),
)
LOCK = PackLock().having(*PACKS)


def entry(**changes: Any) -> dict[str, Any]:
    """A sound entry with these members changed."""
    return {"name": "fox", "source": {"local": "fox"}, **changes}


def faults(*entries: Any) -> list[str]:
    """What a lock with these entries is refused for, each with its place."""
    with pytest.raises(InvalidInput) as caught:
        parse(json.dumps({"version": 1, "packs": list(entries)}))
    assert {problem.code for problem in caught.value.problems} == {"bad_lock"}
    return [f"{problem.input}: {problem.what}" for problem in caught.value.problems]


def test_a_lock_is_read_as_it_was_written() -> None:
    assert parse(write(LOCK)) == LOCK


def test_the_text_does_not_depend_on_the_order() -> None:
    backwards = PackLock(tuple(reversed(LOCK.packs)))
    assert write(backwards) == write(LOCK)
    assert [pack.name for pack in parse(write(backwards)).packs] == [
        *("Bear", "cat", "dog", "elk", "fox")
    ]


def test_one_more_class_is_one_more_line() -> None:
    more = LOCK.having(replace(PACKS[0], classes=("Bear", "Cat", "Fox")))
    added = set(write(more).splitlines()) - set(write(LOCK).splitlines())
    assert added == {'        "Cat",'}


def test_an_entry_is_replaced_by_its_name_in_any_letter_case() -> None:
    changed = LOCK.having(replace(PACKS[1], name="BEAR"))
    assert [pack.name for pack in changed.packs].count("BEAR") == 1
    assert changed.get("bear") == replace(PACKS[1], name="BEAR")
    assert len(changed.packs) == len(LOCK.packs)


def test_packs_are_found_by_class() -> None:
    assert LOCK.with_class("Fox") == (PACKS[0],)
    assert LOCK.with_class("Wolf") == ()


def test_every_fault_is_told_by_its_entry() -> None:
    assert faults(
        entry(name="../fox"),
        entry(name="b", source={"git": "https://x.example/b", "commit": "main"}),
        entry(name="B"),
        entry(name="c", source={"git": "https://x.example/c", "local": "c"}),
        entry(name="d", digest="no", classes="D"),
        7,
    ) == [
        "custom_nodes.lock.json, entry 1 (../fox): '../fox' is no name for a pack's folder: it"
        " takes letters, digits, '.', '_' and '-'.",
        "custom_nodes.lock.json, entry 2 (b): Its `commit` 'main' is not a full commit id in small"
        " letters.",
        "custom_nodes.lock.json, entry 3 (B): An entry before it has the same name.",
        "custom_nodes.lock.json, entry 4 (c): Its `source` must have just one of git, registry,"
        " archive, local.",
        "custom_nodes.lock.json, entry 5 (d): Its `digest` 'no' is not a sha256.",
        "custom_nodes.lock.json, entry 5 (d): Its `classes` must be a list of texts.",
        "custom_nodes.lock.json, entry 6: It is no object.",
    ]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"git": "ext::sh", "commit": COMMIT}, "is no git repository"),
        ({"git": "http://x.example/a", "commit": COMMIT}, "is no git repository"),
        ({"git": "https://me:secret@x.example/a", "commit": COMMIT}, "a user or password"),
        ({"git": "--upload-pack=x", "commit": COMMIT}, "is no git repository"),
        ({"git": "https://x.example/a", "commit": COMMIT, "ref": "-x"}, "must not begin with"),
        ({"git": "https://x.example/a"}, "It has no `commit`."),
        ({"registry": "a b", "version": "1"}, "is not an id of the registry"),
        ({"registry": "ab"}, "It has no `version`."),
        ({"archive": "file:///etc/x.zip"}, "is not an http or https URL"),
        ({"archive": "https://u:p@x.example/x.zip"}, "a user or password"),
        ({"local": "/etc"}, "must be a path relative to the lock"),
        ({"local": "a", "commit": COMMIT}, "what is not known: 'commit'"),
        ({}, "must have just one of"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source: dict[str, str], fault: str) -> None:
    told = faults(entry(source=source))
    assert fault in told[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "It is no JSON"),
        ("[]", "an object with a list `packs`"),
        ('{"version": 2, "packs": []}', "Its version is 2"),
    ],
)
def test_a_file_that_is_no_lock_is_refused(text: str, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        parse(text, "mine.json")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".hidden",
        "a/b",
        "a b",
        "a.disabled",
        "x.py",
        "requirements.lock",
        "Custom_nodes.lock.JSON",
        "__pycache__",
        "ü",
        "a" * 101,
    ],
)
def test_a_name_that_is_no_folder_for_comfyui_is_refused(name: str) -> None:
    assert check_name(name)


@pytest.mark.parametrize("name", ["ComfyUI-Fox", "fox_2.0", "0246", "_x"])
def test_a_usual_name_is_taken(name: str) -> None:
    assert not check_name(name)


def test_a_class_of_any_name_can_be_locked() -> None:
    """A pack names its classes, with half characters too."""
    lock = PackLock((replace(PACKS[0], classes=("A\ud800", "\u00dcber")),))
    text = write(lock)
    assert parse(text.encode().decode()) == lock
    assert "\u00dcber" in text
