"""What a person may type to name a pack."""

from pathlib import Path

import pytest

from comfy_runner.errors import InvalidInput
from comfy_runner.packs.asked import (
    Asked,
    AskedArchive,
    AskedFolder,
    AskedGit,
    AskedRegistry,
    name_for,
    read,
)

GITHUB = "https://github.com/kijai/ComfyUI-KJNodes"
ZIP = f"{GITHUB}/archive/refs/tags/v1.0.zip"


@pytest.mark.parametrize(
    ("text", "found", "name"),
    [
        (GITHUB, AskedGit(GITHUB), "ComfyUI-KJNodes"),
        (f"{GITHUB}.git", AskedGit(f"{GITHUB}.git"), "ComfyUI-KJNodes"),
        (f"{GITHUB}/", AskedGit(GITHUB), "ComfyUI-KJNodes"),
        (f"git+{GITHUB}", AskedGit(GITHUB), "ComfyUI-KJNodes"),
        (f"{GITHUB}/tree/a/b", AskedGit(GITHUB, "a/b"), "ComfyUI-KJNodes"),
        ("kijai/ComfyUI-KJNodes", AskedGit(GITHUB), "ComfyUI-KJNodes"),
        ("git@host.example:a/fox.git", AskedGit("git@host.example:a/fox.git"), "fox"),
        ("ssh://git@host.example/a/fox", AskedGit("ssh://git@host.example/a/fox"), "fox"),
        ("file:///srv/fox", AskedGit("file:///srv/fox"), "fox"),
        ("comfyui-kjnodes", AskedRegistry("comfyui-kjnodes"), "comfyui-kjnodes"),
        ("comfyui-kjnodes@1.2.3", AskedRegistry("comfyui-kjnodes", "1.2.3"), "comfyui-kjnodes"),
        (ZIP, AskedArchive(ZIP), "ComfyUI-KJNodes"),
        ("https://x.example/fox.tar.gz", AskedArchive("https://x.example/fox.tar.gz"), "fox"),
        ("http://127.0.0.1/f.zip?a=b", AskedArchive("http://127.0.0.1/f.zip?a=b"), "f"),
    ],
)
def test_a_place_is_read(text: str, found: Asked, name: str) -> None:
    assert read(text) == found
    assert name_for(found) == name


def test_a_ref_goes_to_what_can_have_one() -> None:
    assert read("a/fox", "v1") == AskedGit("https://github.com/a/fox", "v1")
    assert read("fox", "1.2.3") == AskedRegistry("fox", "1.2.3")
    with pytest.raises(InvalidInput, match="is an archive, which has no 'v1'"):
        read(ZIP, "v1")


def test_a_folder_that_exists_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "fox").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = read("a/fox")
    assert asked == AskedFolder(tmp_path / "a" / "fox") == read("./a/fox")
    assert name_for(asked) == "fox"
    assert name_for(asked, "bear") == "bear"
    with pytest.raises(InvalidInput, match="is a folder, which has no 'v1'"):
        read("./a/fox", "v1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no place"),
        ("a b", "names no place"),
        ("a/b/c", "names no place"),
        ("fox@", "names no place"),
        ("--upload-pack=x", "names no place"),
        ("./none", "There is no folder"),
        ("~nobody_of_that_name/fox", "There is no folder"),
        ("a" * 300, "names no place"),
        ("http://x.example/a", "is no git repository over https or ssh"),
        ("git://x.example/a", "is no git repository over https or ssh"),
        ("ext::sh -c x", "is no git repository over https or ssh"),
        ("http://x.example/a.zip", "not fetched over plain http"),
        ("https://me:secret@x.example/a", "a user or password"),
        ("https://token@x.example/a", "a user or password"),
        ("https://x.example/a.zip#egg=a", "has a space, a # or capitals"),
        ("HTTPS://x.example/a.zip", "has a space, a # or capitals"),
        ("https://github.com/a/fox/tree/-x", "is no branch, tag or commit"),
        ("https://github.com/a/fox?x/tree/main", "is no git repository"),
        ("k\u0456jai/fox", "names no place"),
    ],
)
def test_what_is_no_safe_place_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        read(text)
    assert "secret" not in str(caught.value)
    assert "token@" not in str(caught.value)


def test_a_ref_that_git_would_take_for_an_option_is_refused() -> None:
    with pytest.raises(InvalidInput, match="is no branch, tag, commit or version"):
        read("a/fox", "--upload-pack=x")


def test_a_place_whose_name_is_none_wants_one() -> None:
    with pytest.raises(InvalidInput, match="is no name for a pack's folder") as caught:
        name_for(AskedGit("https://x.example/a%20b"))
    assert caught.value.problems[0].hint == "Give it another name with --name."
