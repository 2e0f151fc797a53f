"""Fetching commits out of real repositories, made on the spot, with all that can go wrong."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from fakes.git_repositories import Repository, pack_files, write_files

from comfy_runner.errors import DownloadFailed, InvalidInput
from comfy_runner.packs import git
from comfy_runner.packs.git import Revision, checkout, resolve


def files_in(folder: Path) -> Mapping[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A pack with one commit."""
    made = Repository(tmp_path / "ComfyUI-Fox")
    made.commit(pack_files("Fox"))
    return made


def test_a_branch_a_tag_and_a_commit_are_found(repository: Repository) -> None:
    first = repository.head
    repository.git("tag", "v1")
    repository.git("tag", "--annotate", "v1.0", "--message", "One")
    second = repository.commit({"more.py": ""})
    repository.git("branch", "dev", first)
    assert resolve(repository.url) == Revision(second)
    assert resolve(repository.url, "main") == Revision(second, "main")
    assert resolve(repository.url, "dev") == Revision(first, "dev")
    assert resolve(repository.url, "v1") == Revision(first, "v1")
    assert resolve(repository.url, "v1.0") == Revision(first, "v1.0")
    assert resolve(repository.url, "refs/tags/v1.0") == Revision(first, "refs/tags/v1.0")
    assert resolve(repository.url, first) == Revision(first)
    assert resolve(repository.url, first[:9]) == Revision(first)


def test_a_branch_that_moved_means_another_commit_and_the_old_one_stays_to_be_had(
    repository: Repository, tmp_path: Path
) -> None:
    first = resolve(repository.url, "main").commit
    second = repository.commit(pack_files("Fox", "Bear"))
    assert resolve(repository.url, "main").commit == second
    checkout(repository.url, first, tmp_path / "first")
    assert files_in(tmp_path / "first") == pack_files("Fox")


def test_a_branch_and_a_tag_of_one_name_must_be_told_apart(repository: Repository) -> None:
    repository.git("tag", "both")
    repository.commit({"more.py": ""})
    repository.git("branch", "both")
    with pytest.raises(InvalidInput, match="both a branch and a tag 'both'") as caught:
        resolve(repository.url, "both")
    assert caught.value.problems[0].hint == "Write refs/heads/both or refs/tags/both."


def test_an_unknown_name_lists_those_that_are_like_it(repository: Repository) -> None:
    repository.git("tag", "v1.2")
    with pytest.raises(InvalidInput, match=r"has no branch, tag or commit 'v1\.3'") as caught:
        resolve(repository.url, "v1.3")
    assert caught.value.problems[0].hint == "It has v1.2."


def test_a_commit_that_a_force_push_removed_is_told(repository: Repository, tmp_path: Path) -> None:
    gone = repository.commit({"more.py": ""})
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    repository.commit({"other.py": ""})
    repository.forget()
    with pytest.raises(InvalidInput, match=f"has no commit {gone}, or has it no more") as caught:
        checkout(repository.url, gone, tmp_path / "into")
    assert "--ref" in caught.value.problems[0].hint


def test_what_was_not_committed_is_not_fetched(repository: Repository, tmp_path: Path) -> None:
    write_files(repository.folder, {"__init__.py": "dirty", "more.py": "dirty"})
    checkout(repository.url, repository.head, tmp_path / "into")
    assert files_in(tmp_path / "into") == pack_files("Fox")


def test_submodules_come_along_without_metadata(repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.commit({"inner.py": "X = 1\n"})
    (inner.folder / "link").symlink_to("/etc/passwd")
    inner.commit({})
    repository.git("submodule", "--quiet", "add", inner.url, "parts/inner")
    commit = repository.commit({})
    checkout(repository.url, commit, tmp_path / "into")
    found = files_in(tmp_path / "into")
    assert found["parts/inner/inner.py"] == "X = 1\n"
    assert found["parts/inner/link"] == "/etc/passwd"
    assert not (tmp_path / "into" / "parts" / "inner" / "link").is_symlink()
    assert not [name for name in found if ".git/" in name or name.endswith("/.git")]


def test_a_submodule_that_is_gone_is_told(repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.commit({"inner.py": ""})
    repository.git("submodule", "--quiet", "add", inner.url, "inner")
    commit = repository.commit({})
    inner.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DownloadFailed, match="a submodule: "):
        checkout(repository.url, commit, tmp_path / "into")


def test_links_become_files_with_their_target(repository: Repository, tmp_path: Path) -> None:
    (repository.folder / "link").symlink_to("/etc/passwd")
    commit = repository.commit({})
    checkout(repository.url, commit, tmp_path / "into")
    link = tmp_path / "into" / "link"
    assert not link.is_symlink()
    assert link.read_text() == "/etc/passwd"


def test_nothing_that_a_person_or_repository_set_up_is_run(
    repository: Repository, tmp_path: Path
) -> None:
    """Hooks of `init.templateDir` and `core.hooksPath`, and a filter that a pack asks for."""
    ran = tmp_path / "ran"
    script = f"#!/bin/sh\ntouch {ran}\ncat\n"
    for place in ("template/hooks/post-checkout", "hooks/post-checkout", "hooks/smudge"):
        path = write_files(tmp_path, {place: script}) / place
        path.chmod(0o755)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    attributes = "*.bin filter=lfs\n*.ipynb filter=my=own.strip\n"
    notebook = {"a.ipynb": "{}", "a.bin": pointer, ".gitattributes": attributes}
    inner = Repository(tmp_path / "inner")
    inner.commit(notebook)
    repository.git("submodule", "--quiet", "add", inner.url, "inner")
    commit = repository.commit(notebook)
    config = tmp_path / "config"
    config.write_text(
        f"[init]\n templateDir = {tmp_path}/template\n[core]\n hooksPath = {tmp_path}/hooks\n"
        f'[filter "lfs"]\n smudge = {tmp_path}/hooks/smudge\n process = {tmp_path}/hooks/smudge\n'
        f' required = true\n[filter "my=own.strip"]\n smudge = {tmp_path}/hooks/smudge\n'
    )
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": str(config)}
    checkout(repository.url, commit, tmp_path / "into", environment)
    assert (tmp_path / "into" / "a.bin").read_text() == pointer
    assert (tmp_path / "into" / "inner" / "a.ipynb").read_text() == "{}"
    assert not ran.exists()


@pytest.mark.parametrize("transport", ["ext::sh -c 'touch {ran}'", "fd::17", "{folder}"])
def test_no_transport_but_https_and_ssh_is_used(
    repository: Repository, tmp_path: Path, transport: str
) -> None:
    ran = tmp_path / "ran"
    url = transport.format(ran=ran, folder=repository.folder)
    with pytest.raises(DownloadFailed, match="not allowed"):
        checkout(url, repository.head, tmp_path / "into")
    assert not ran.exists()


def test_a_remote_repository_cannot_name_submodules_of_this_machine(
    repository: Repository, tmp_path: Path
) -> None:
    """Where the pack's own address is https, git gets no leave for files."""
    shell = git._Git(tmp_path, "https://example.com/pack", {})  # noqa: SLF001
    assert shell.environment["GIT_ALLOW_PROTOCOL"] == "https:ssh"
    assert "not allowed" in shell.run("ls-remote", repository.url)


def test_a_repository_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"git could not fetch file://.*/none"):
        resolve(f"file://{tmp_path}/none")


def test_variables_of_another_repository_do_not_count(
    repository: Repository, tmp_path: Path
) -> None:
    """As inside a git hook."""
    environment = {**os.environ, "GIT_DIR": str(tmp_path / "nowhere"), "GIT_TRACE": "1"}
    checkout(repository.url, repository.head, tmp_path / "into", environment)
    assert files_in(tmp_path / "into") == pack_files("Fox")


def test_a_repository_that_hashes_with_sha256_is_fetched(tmp_path: Path) -> None:
    made = Repository(tmp_path / "new")
    shutil.rmtree(made.folder / ".git")
    made.git("init", "--quiet", "--initial-branch", "main", "--object-format", "sha256")
    made.commit(pack_files("Fox"))
    found = resolve(made.url, "main")
    assert len(found.commit) == 64
    checkout(made.url, found.commit, tmp_path / "into")
    assert files_in(tmp_path / "into") == pack_files("Fox")
