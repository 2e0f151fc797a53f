"""What `judge` lets through, and how it words what it refuses."""

import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from comfy_runner.errors import DownloadFailed, HashMismatch
from comfy_runner.fetch.judge import judge


def safetensors(payload: bytes = b"abcd", pad: int = 0) -> bytes:
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    header = json.dumps({"a": tensor}).encode()
    header += b" " * max(pad - len(header), 0)
    return len(header).to_bytes(8, "little") + header + payload


def judged(path: Path, content: bytes, **options: object) -> str:
    path.write_bytes(content)
    given = {"name": path.name, "size": None, "sha256": None, "shown": "https://host/x"}
    return judge(path, **{**given, **options})


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("lora.safetensors"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.safetensors", safetensors()),
        # The header's length is the first eight bytes, whatever they look like.
        ("x.safetensors", safetensors(pad=0x0280)),
        ("x.safetensors", safetensors(pad=0x4B50)),
        ("x.gguf", b"GGUF\x03\x00\x00\x00"),
        ("x.ckpt", zipped()),
        ("x.pt", pickle.dumps([1])),
        ("x.tar", tarred()),
        ("config.json", b'{"error": "is a name like any other"}'),
        ("notes.html", b"<!DOCTYPE html><p>hello"),
        ("merges.txt", b"{ not JSON"),
    ],
)
def test_lets_through_what_is_sound(tmp_path: Path, name: str, content: bytes) -> None:
    expected = hashlib.sha256(content).hexdigest()
    assert judged(tmp_path / name, content, size=len(content), sha256=expected.upper()) == expected


def test_does_not_read_a_file_again_whose_hash_is_known(tmp_path: Path) -> None:
    given = "a" * 64
    assert judged(tmp_path / "x.bin", b"x", sha256=given, known_sha256=given.upper()) == given
    with pytest.raises(HashMismatch, match=f"its sha256 is {given}"):
        judged(tmp_path / "x.bin", b"x", sha256="b" * 64, known_sha256=given)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><title>Log in</title>",
        b"\xef\xbb\xbf  \n<HTML>",
        b"<?xml version='1.0'?>\n<!-- hello -->\n<!-- again\n --><html lang='en'>",
        b"<head><meta>",
    ],
)
@pytest.mark.parametrize("expect", ["weight", "media"])
def test_refuses_a_web_page(tmp_path: Path, content: bytes, expect: str) -> None:
    with pytest.raises(DownloadFailed, match="web page"):
        judged(tmp_path / "x.safetensors", content, size=10**9, sha256="a" * 64, expect=expect)
    assert judged(tmp_path / "x.safetensors", content, expect="any")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"error": "Not authorised"}', "Not authorised"),
        (b'\xef\xbb\xbf{"message": "gone", "url": "https://h/x?token=s3cret"}', "gone"),
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Expired</Message>'
            b"<AWSAccessKeyId>s3cret</AWSAccessKeyId></Error>",
            "AccessDenied",
        ),
    ],
)
def test_refuses_an_error_message(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(DownloadFailed, match=f"error message .*{told}") as caught:
        judged(tmp_path / "x.ckpt", content)
    assert "s3cret" not in str(caught.value)


def test_refuses_a_git_lfs_pointer(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    for name in ("x.safetensors", "x.bin"):
        with pytest.raises(DownloadFailed, match="Git LFS pointer"):
            judged(tmp_path / name, pointer)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (pickle.dumps({"a": 1}, protocol=2), "pickle"),
        (pickle.dumps({"a": 1}, protocol=5), "pickle"),
        (zipped(), "zip archive"),
        (tarred(), "tar archive"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip archive"),
        (b"GGUF" + bytes(20), "GGUF file"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "X.SFT"])
def test_refuses_another_kind_where_safetensors_were_promised(
    tmp_path: Path, content: bytes, kind: str, name: str
) -> None:
    with pytest.raises(DownloadFailed, match=f"{kind}.* promises safetensors"):
        judged(tmp_path / name, content)


def test_refuses_broken_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="where its header says"):
        judged(tmp_path / "x.safetensors", safetensors()[:-1])
    with pytest.raises(DownloadFailed, match="no GGUF"):
        judged(tmp_path / "x.gguf", b"x")
    with pytest.raises(DownloadFailed, match="is empty"):
        judged(tmp_path / "x.bin", b"", expect="any")


def test_names_what_was_promised_and_what_came(tmp_path: Path) -> None:
    content = safetensors()
    with pytest.raises(HashMismatch, match=f"has {len(content)} bytes where 5 were expected"):
        judged(tmp_path / "x.safetensors", content, size=5)
    with pytest.raises(HashMismatch, match="has 1 bytes where 5 were expected"):
        judged(tmp_path / "x.safetensors", b"x", size=5)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(HashMismatch, match=f"https://host/x .*its sha256 is {found}"):
        judged(tmp_path / "x.safetensors", content, sha256="0" * 64)
