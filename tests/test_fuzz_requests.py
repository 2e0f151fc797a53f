"""What else a request may hold: values, addresses, names of files, and a manifest's entries."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cog import Secret
from graphs import picture
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfy_runner.errors import CallerError, InvalidInput
from comfy_runner.fetch.urls import clean_name, redacted
from comfy_runner.runs.files import GivenFile, InputFolder, numbered, safe_name
from comfy_runner.runs.run import Request
from comfy_runner.serving import prediction
from comfy_runner.weights.hosts.addresses import Data, canonical, parse, shown
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.references import normalised

HALF = "\ud83d"
"""Half of an emoji, as a text that was cut in the middle of one ends with."""
DOCUMENT = json.dumps(picture())

NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *("a.png", "A.PNG", "a.zip", "../a.png", "/etc/passwd", "..", ".", "", "a\0.png", HALF),
            *("x" * 300, "é" * 200, "a\nb.png", "a.png [output]", "a\\..\\b.png", ".hidden", "CON"),
            *("a/../../b.png", " ", "-rf", "$(id).png", "\u202egnp.exe", "a.tar.gz", "input.png"),
        ]
    ),
)
PARTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *("://", "/", "?", "#", "@", ":", "%", "%00", "%2e%2e", "..", "[", "]", "[::1]", " "),
            *("http", "https", "file", "data:", "hf", "urn:air:", "civitai", "huggingface.co"),
            *("127.0.0.1", "0x7f.1", "localhost", "169.254.169.254", "user:pass", "example.com"),
            *("replicate.com", "models", "resolve/main", "x.safetensors", "token=s3cret", HALF),
            *(
                "\uff1a",
                "\uff0e",
                "\u24d4xample.com",
                "\t",
                "\r\n",
                "\\",
                "1" * 400,
                "9" * 30,
                "&sig=",
            ),
        ]
    ),
)
ADDRESSES = st.lists(PARTS, max_size=8).map("".join)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | NAMES | ADDRESSES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)

ENTRY = {
    "name": "a.safetensors",
    "folders": ["vae"],
    "urls": [{"url": "https://example.org/a.tar", "extract": "tar", "member": "a.safetensors"}],
    "kind": "file",
    "size": 5,
    "sha256": "0" * 64,
    "files": [{"path": "x", "size": 1}],
    "aliases": ["b.sft"],
    "implied_by": [{"class_type": "X", "input": "y", "equals": "z"}],
    "license": "MIT",
    "gated": True,
}


def request(**given_inputs: Any) -> Request:
    """The request of a prediction with these inputs and the defaults of the others."""
    defaults: dict[str, Any] = {
        "workflow_json": DOCUMENT,
        "workflow_file": None,
        "prefer": "prompt",
        "inputs": "",
        "input_file": None,
        "input_files": None,
        "seed": None,
        "randomise_seeds": True,
        "output_format": "original",
        "output_quality": 95,
        "return_temp_files": False,
        "all_outputs": False,
        "force_reset_cache": False,
        "timeout": None,
        "receipt": False,
    }
    return prediction.request(**{**defaults, **given_inputs})


SHORT_NAMES = NAMES.filter(lambda name: len(name.encode(errors="replace")) < 250)


@given(st.text(max_size=20) | JUNK.map(json.dumps), st.text(max_size=5) | st.none(), SHORT_NAMES)
@example("[" * 100_000, None, "")
@example('{"a": ' * 100_000, None, "")
@example("NaN", "a b", HALF)
@example("1" * 5000, None, "")
def test_any_inputs_make_a_request_or_are_refused(
    inputs: str, token: str | None, path: str
) -> None:
    if inputs.strip().lower().startswith("http"):
        return
    with suppress(CallerError):
        made = request(
            inputs=inputs,
            input_file=Path(path) if path else None,
            hf_token=None if token is None else Secret(token),
        )
        assert not path
        assert not made.files
        assert all(value.isascii() and value for value in made.credentials.values())


def test_a_path_that_no_file_can_have_is_refused_by_the_fields_name() -> None:
    with pytest.raises(InvalidInput, match="input_file"):
        request(input_file=Path("iVBORw0KGgo" * 100))


@given(ADDRESSES, st.booleans(), st.sampled_from(["", "http://mirror:8080/hf"]))
@example("http://[::1", False, "")
@example("http://a:99999999/x", False, "")
@example(f"https://example.com/{HALF}", False, "")
@example(f"DATA:{HALF}", False, "")
@example("https://example.com/\u2100", False, "")
def test_any_address_is_read_or_refused_and_keeps_its_secret(
    text: str, bare: bool, mirror: str
) -> None:
    printable = redacted(text)
    assert printable.isprintable()
    if "://" in text and "=s3cret" not in text.partition("?")[0].partition("#")[0]:
        assert "s3cret" not in printable
    try:
        address = parse(text, bare_repositories=bare, hf_endpoint=mirror)
    except InvalidInput as err:
        str(err).encode()
        return
    if address is not None:
        assert shown(address).isprintable()
        assert "pass@" not in canonical(address)
        assert isinstance(address, Data) or canonical(address).isprintable()


@given(NAMES)
def test_a_model_name_never_leads_out_of_its_folder(name: str) -> None:
    found = normalised(name)
    if found is not None:
        assert ".." not in Path(found).parts
        assert not found.startswith("/")


@given(NAMES)
def test_a_name_made_safe_is_one_part_of_a_path(name: str) -> None:
    for made in (safe_name(name), clean_name(name)):
        assert Path("folder", made).parent == Path("folder")
        assert made not in ("", ".", "..")
        assert len(made.encode()) < 256
        assert "\0" not in made


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, max_size=4), st.binary(max_size=8))
def test_files_of_any_name_lie_in_the_input_folder(
    tmp_path: Path, names: list[str], content: bytes
) -> None:
    folder = tmp_path / "input"
    folder.mkdir(exist_ok=True)
    upload = tmp_path / "upload"
    upload.write_bytes(content)
    inputs = InputFolder(folder, 1000)
    endings = [Path(safe_name(name)).suffix.lower() for name in names]
    files = [GivenFile(upload, n, f"input{e}") for n, e in zip(names, endings, strict=True)]
    with suppress(InvalidInput):
        for path in inputs.lay(numbered(files)).values():
            assert path.resolve().is_relative_to(folder)
            assert path.read_bytes() == content
    inputs.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "upload"]


@given(JUNK.map(json.dumps) | st.text(max_size=10) | st.binary(max_size=10) | st.just("[" * 9999))
def test_any_manifest_is_read_or_refused(text: str | bytes) -> None:
    with suppress(InvalidInput):
        Manifest.parse(text)


@given(st.dictionaries(st.sampled_from([*ENTRY]), JUNK, max_size=3), JUNK, st.data())
def test_any_entry_of_a_manifest_is_read_or_refused(
    changed: dict[str, Any], more: Any, draw: st.DataObject
) -> None:
    top = {"version": 1, "weights": [{**ENTRY, **changed}]}
    name = draw.draw(st.sampled_from(["groups", "bases", "version", "weights", "$schema"]))
    for document in (top, {**top, name: more}):
        try:
            manifest = Manifest.parse(json.dumps(document))
        except InvalidInput as err:
            told = err
        else:
            for weight in manifest.weights:
                for part in (weight.name, *weight.folders):
                    assert ".." not in Path(part).parts
                    assert not Path(part).is_absolute()
            continue
        assert all(problem.what for problem in told.problems)
