"""A manifest's text is read with all its faults, and written so that it is read back alike."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.weights.manifests.document import Content, content, read, schema, write
from comfy_runner.weights.weight import Implication, Member, Source, Weight

PROJECT = Path(__file__).resolve().parent.parent
SHA = "0123456789abcdef" * 4


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "x.bin", "folders": ["loras"], "urls": ["https://host/x.bin"], **more}


def faults(*entries: Any, **top: Any) -> list[tuple[str, str]]:
    """Place and text of all faults of a manifest."""
    with pytest.raises(InvalidInput) as caught:
        content({"version": 1, "weights": list(entries), **top})
    return [(problem.input, problem.what) for problem in caught.value.problems]


# Reading


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a%20b.bin?download=true",
        "http://127.0.0.1:8080/x",
        "file:///models/x.bin",
        "data:application/octet-stream;base64,AAAA",
        "hf://owner/repo/split/x.bin",
        "hf://owner/repo@refs%2Fpr%2F1/x.bin",
        "civitai:12@34",
        "urn:air:sdxl:lora:civitai:12@34",
        "replicate:owner/model",
        "assets/weights/x.bin",
    ],
)
def test_takes_all_kinds_of_addresses(url: str) -> None:
    weights, _ = read({"version": 1, "weights": [entry(urls=[url])]})
    assert weights[0].urls == (Source(url),)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://", "no usable address"),
        ("https://host:99999/x", "no usable address"),
        ("https://host/a b.bin", "no usable address: write a space as %20"),
        ("https://host/../x", "must not hold '..'"),
        ("file:///a/../b", "must not hold '..'"),
        ("data:x", "needs a comma"),
        ("hf://owner", "cannot be used"),
        ("civitai:twelve", "cannot be used"),
        ("urn:air:sdxl", "cannot be used"),
        ("ftp://host/x", "unknown scheme; bases: none"),
        ("s3://bucket/x?X-Amz-Signature=s3cret", "unknown scheme"),
        ("r8:../x", "must not hold '..'"),
    ],
)
def test_refuses_addresses_that_cannot_be_fetched(url: str, text: str) -> None:
    bases = {"r8": "https://host/default"} if url.startswith("r8:") else {}
    ((place, what),) = faults(entry(urls=[url]), bases=bases)
    assert place == "weights[0].urls[0].url"
    assert what.startswith("loras/x.bin: url ")
    assert text in what
    assert "s3cret" not in what


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        ({"folders": [".store"]}, "folders", "must not begin with a dot"),
        ({"files": [{"path": "a"}]}, "files", 'belongs to the kind "dir"'),
        ({"kind": "dir", "files": [{"path": "a"}] * 2}, "files", "the same path twice"),
        ({"license_url": "LICENSE"}, "license_url", "http or https URL"),
        ({"licence": "MIT"}, "licence", "is no known member: is it license?"),
        ({"note": "\ud800"}, "note", "half a character"),
        ({"aliases": ["\ud800"]}, "aliases", "texts only"),
        ({"name": "\ud800"}, "name", "relative path"),
        ({"urls": [{"url": "a", "member": "b"}]}, "urls[0].member", "extract is missing"),
        ({"urls": [{"url": "a", "strip": 1}]}, "urls[0].strip", "extract is missing"),
        ({"urls": [{"url": "a", "env": "TOKEN"}]}, "urls[0].env", 'the auth "bearer_env"'),
        (
            {"urls": [{"url": "a", "auth": "bearer_env", "env": "hf_ab-c"}]},
            "urls[0].env",
            "not a token",
        ),
    ],
)
def test_names_entry_and_place_of_members_that_make_no_sense(
    change: dict[str, Any], place: str, text: str
) -> None:
    ((found, what),) = faults(entry(**change))
    assert found == f"weights[0].{place}"
    assert text in what


def test_a_fault_of_the_second_entry_names_it() -> None:
    assert faults(entry(), entry(name="sub/y.bin", size=-1)) == [
        ("weights[1].size", "loras/sub/y.bin: size must be a whole number of at least 1.")
    ]


def test_faults_of_groups_and_bases_name_them() -> None:
    top = {"groups": {"a": ["loras/y.bin"]}, "bases": {"hf": "https://x", "r8": "https://"}}
    assert [place for place, _ in faults(entry(), **top)] == [
        "bases.hf",
        "bases.r8.url",
        "groups.a",
    ]


def test_a_number_that_json_does_not_have_is_no_manifest() -> None:
    with pytest.raises(InvalidInput, match="NaN is no JSON number"):
        content('{"version": 1, "weights": [], "x": NaN}')


def test_the_schema_may_be_named() -> None:
    assert content({"$schema": "./s.json", "version": 1, "weights": []}).schema == "./s.json"


# Writing

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
parts = st.text("abcXYZ01_-.", min_size=1, max_size=6).filter(lambda part: part.strip("."))
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
hashes = st.sampled_from([None, SHA, "f" * 64])
sizes = st.none() | st.integers(1, 10**12)
urls = st.one_of(
    paths,
    paths.map("https://host/default/{}".format),
    paths.map("https://host/{}?a=b".format),
    paths.map("hf://owner/repo/{}.safetensors".format),
)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    extract = draw(st.sampled_from(["", "tar", "zip"]))
    auth = draw(st.sampled_from(["none", "hf", "civitai", "bearer_env"]))
    return Source(
        draw(urls),
        auth=auth,
        env="TOKEN" if auth == "bearer_env" else "",
        extract=extract,
        member=draw(st.just("") | paths) if extract else "",
        strip=draw(st.integers(0, 2)) if extract else 0,
        size=draw(sizes),
        sha256=draw(hashes),
    )


@st.composite
def weights(draw: st.DrawFn, number: int) -> Weight:
    kind = draw(st.sampled_from(["file", "dir"]))
    members = st.builds(Member, paths, st.none() | st.integers(0, 9), hashes)
    values = st.none() | words | st.booleans() | st.integers() | st.floats(allow_nan=False)
    values = values.filter(lambda value: value not in (float("inf"), -float("inf")))
    texts = st.just("") | words
    return Weight(
        name=f"{number}/{draw(paths)}",
        folders=tuple(draw(st.lists(st.sampled_from(["loras", "vae"]), min_size=1, unique=True))),
        urls=tuple(draw(st.lists(sources(), min_size=1, max_size=3))),
        kind=kind,
        size=draw(sizes),
        sha256=draw(hashes),
        files=tuple(draw(st.lists(members, max_size=2, unique_by=lambda member: member.path)))
        if kind == "dir"
        else (),
        aliases=tuple(f"{number}-{alias}" for alias in draw(st.sets(parts, max_size=2))),
        implied_by=tuple(
            draw(
                st.lists(
                    st.builds(Implication, words, st.none() | words, values, st.none() | words),
                    max_size=2,
                )
            )
        ),
        license=draw(texts),
        license_url=draw(st.sampled_from(["", "https://host/license"])),
        note=draw(texts),
        air=draw(st.sampled_from(["", "urn:air:flux1:vae:x:1"])),
        gated=draw(st.booleans()),
        non_commercial=draw(st.booleans()),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Content:
    found = tuple(draw(weights(number)) for number in range(draw(st.integers(0, 3))))
    labels = [weight.label for weight in found]
    groups = draw(
        st.dictionaries(words, st.lists(st.sampled_from(labels)).map(tuple), max_size=2)
        if labels
        else st.just({})
    )
    bases = draw(
        st.dictionaries(
            st.sampled_from(["r8", "own"]),
            st.sampled_from(["https://host/default", "https://host/default/", "https://host"]),
        )
    )
    return Content(found, groups, bases, draw(st.sampled_from(["", "./s.json"])))


@given(manifests())
def test_what_is_written_is_read_back_alike(manifest: Content) -> None:
    text = write(manifest.weights, manifest.groups, manifest.bases, schema=manifest.schema)
    again = content(text)
    assert again == manifest
    assert write(again.weights, again.groups, again.bases, schema=again.schema) == text


def test_writes_one_readable_entry_after_the_other() -> None:
    first = Weight(
        name="ae.safetensors",
        folders=("vae",),
        urls=(
            Source("https://host/ae.safetensors"),
            Source("https://r8/x/vae/ae.tar", extract="tar", member="ae.safetensors"),
        ),
        size=5,
        aliases=("ae.sft",),
    )
    text = write([first], {"boot": ["vae/ae.safetensors"]}, {"r8": "https://r8/x/"})
    assert text == (
        "{\n"
        '  "version": 1,\n'
        '  "bases": {\n'
        '    "r8": "https://r8/x/"\n'
        "  },\n"
        '  "weights": [\n'
        "    {\n"
        '      "name": "ae.safetensors",\n'
        '      "folders": ["vae"],\n'
        '      "urls": [\n'
        '        "https://host/ae.safetensors",\n'
        '        {"url": "r8:vae/ae.tar", "extract": "tar", "member": "ae.safetensors"}\n'
        "      ],\n"
        '      "size": 5,\n'
        '      "aliases": ["ae.sft"]\n'
        "    }\n"
        "  ],\n"
        '  "groups": {\n'
        '    "boot": ["vae/ae.safetensors"]\n'
        "  }\n"
        "}\n"
    )


# The schema and the manifest that ship


def test_the_schema_names_every_member_that_is_read() -> None:
    written = json.loads(
        write(
            [
                Weight(
                    name="x",
                    folders=("vae",),
                    urls=(
                        Source("x", "bearer_env", "T", "tar", "m", 1, 1, SHA),
                        Source("https://host/x"),
                    ),
                    kind="dir",
                    size=1,
                    sha256=SHA,
                    files=(Member("a", 1, SHA),),
                    aliases=("y",),
                    implied_by=(Implication("A", "i", 1, "c"),),
                    license="l",
                    license_url="https://l",
                    note="n",
                    air="urn:air:x:y:z:1",
                    gated=True,
                    non_commercial=True,
                )
            ],
            {"g": ["vae/x"]},
            {"b": "https://b"},
            schema="s",
        )
    )
    content(written)
    rules = schema()
    named = rules["$defs"]
    (weight,) = written["weights"]
    assert rules["properties"].keys() == written.keys()
    assert named["weight"]["properties"].keys() == weight.keys()
    assert named["source"]["oneOf"][1]["properties"].keys() == weight["urls"][0].keys()
    assert named["member"]["properties"].keys() == weight["files"][0].keys()
    assert named["implication"]["properties"].keys() == weight["implied_by"][0].keys()


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", "a\\b", "./a", "", "a/", "a//b"])
def test_the_pattern_of_the_schema_refuses_the_same_paths(path: str) -> None:
    pattern = schema()["$defs"]["weight"]["properties"]["name"]["pattern"]
    assert not re.search(pattern, path)
    assert re.search(pattern, "a/b c.bin")
    assert faults(entry(name=path))


def test_the_shipped_manifest_and_schema_are_written_as_we_write_them() -> None:
    text = (PROJECT / "weights_manifest.json").read_text("utf-8")
    shipped = content(text)
    assert write(shipped.weights, shipped.groups, shipped.bases, schema=shipped.schema) == text
    assert json.loads((PROJECT / shipped.schema).read_text("utf-8")) == schema()


def test_the_files_in_the_repository_come_first_and_are_as_the_manifest_says() -> None:
    shipped = content((PROJECT / "weights_manifest.json").read_text("utf-8"))
    for weight, name in zip(
        shipped.weights,
        [
            "realesr-animevideov3.safetensors",
            "tiny-flux-colours.safetensors",
            "tiny-clip_l-16tok.pt",
            "tiny-mosaic-vae.pt",
        ],
        strict=False,
    ):
        file = PROJECT / "assets" / "weights" / name
        assert (weight.name, weight.size) == (name, file.stat().st_size)
        assert weight.sha256
        assert weight.license
    remote = shipped.weights[4:]
    assert all(source.url.startswith("https://") for weight in remote for source in weight.urls)
