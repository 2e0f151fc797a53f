"""Where workflows name models, and what a name stands for."""

from collections.abc import Mapping
from typing import Any

import pytest
from graphs import bundled, catalog, node
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import parse
from comfy_runner.weights.embeddings import embedding_names
from comfy_runner.weights.references import (
    Reference,
    find,
    means,
    normalised,
    put,
    spellings,
    stands_for,
)

RGTHREE = "Power Lora Loader (rgthree)"
MANAGER = "Lora Loader (LoraManager)"


def pack_class(**inputs: Any) -> dict[str, Any]:
    """The definition of a class, as ComfyUI reports it."""
    return {"input": {"required": inputs}, "output": ["MODEL"], "output_node": False}


PACKS = catalog().with_classes_of(
    NodeCatalog(
        {
            "object_info": {
                RGTHREE: pack_class(model=["MODEL"]),
                MANAGER: pack_class(model=["MODEL"], text=["STRING"]),
                "Picker": pack_class(
                    file=[["a.safetensors", "b.safetensors"]], mode=[["fast.pt", "slow"]]
                ),
                "Judge": pack_class(file=[["a.safetensors"]]),
            },
            "unchecked": {"Judge": ["file"]},
        }
    )
)


def found(document: Mapping[str, Any], known: NodeCatalog = PACKS) -> list[Reference]:
    return list(find(parse(document), known))


def named(class_type: str, **inputs: Any) -> list[tuple[str | None, str]]:
    """Folder and name of what one node names."""
    return [(r.folder, r.name) for r in found({"1": node(class_type, **inputs)})]


# Finding


def test_every_model_input_is_found_whatever_its_node_is_called() -> None:
    references = {
        (r.node_id, r.input): (r.folder, r.name) for r in found(bundled("text_to_picture"))
    }
    assert set(references.values()) == {
        ("diffusion_models", "tiny-flux-colours.safetensors"),
        ("text_encoders", "tiny-clip_l-16tok.pt"),
        ("vae", "tiny-mosaic-vae.pt"),
    }


def test_a_reference_tells_where_it_stands() -> None:
    document = {"7": node("LoraLoader", "Style", lora_name="a.safetensors", model=["1", 0])}
    assert found(document) == [
        Reference("7", "Style", "LoraLoader", "lora_name", "loras", "a.safetensors")
    ]


def test_choices_that_are_no_files_are_no_models() -> None:
    assert named("VAELoader", vae_name="pixel_space") == []
    assert named("VAELoader", vae_name="taef1") == [("vae", "taef1")]


def test_a_folder_that_counts_as_a_model_is_named_like_a_file() -> None:
    assert named("DiffusersLoader", model_path="sd-turbo") == [("diffusers", "sd-turbo")]


def test_a_wrapped_text_is_a_text() -> None:
    (reference,) = found({"1": node("VAELoader", vae_name={"__value__": "a.pt"})})
    assert (reference.name, reference.within) == ("a.pt", ("__value__",))


@pytest.mark.parametrize("value", [["2", 0], 5, None, {"a": "b.pt"}, {"__value__": ["a.pt"]}])
def test_what_is_no_text_names_no_model(value: Any) -> None:
    document = {"1": node("VAELoader", vae_name=value), "2": node("PrimitiveString", value="x")}
    assert found(document) == []


def test_nodes_of_unknown_classes_name_nothing_that_is_known() -> None:
    assert named("NoSuchClass", vae_name="a.pt") == []


def test_without_a_folder_what_ends_like_a_model_and_is_no_choice_counts() -> None:
    assert named("Picker", file="c.safetensors", mode="fast.pt") == [(None, "c.safetensors")]
    assert named("Picker", file="a.safetensors", mode="quick") == []
    assert named("PrimitiveString", value="sub/X.GGUF") == [(None, "sub/X.GGUF")]
    for text in ("a fox", "https://host/x.safetensors", "a\n" * 300 + ".pt", "picture.png"):
        assert named("PrimitiveString", value=text) == []


def test_only_a_combo_that_comfyui_checks_is_sure_to_want_a_file() -> None:
    document = {
        "1": node("Picker", file="c.safetensors", more="d.pt"),
        "2": node("Judge", file="c.safetensors"),
        "3": node("PrimitiveString", value="c.safetensors"),
    }
    assert [(r.node_id, r.input, r.certain) for r in found(document)] == [
        ("1", "file", True),
        ("1", "more", False),
        ("2", "file", False),
        ("3", "value", False),
    ]


def test_power_lora_loader_names_the_loras_that_are_on() -> None:
    lora = {"on": True, "lora": "a.safetensors", "strength": 1}
    document = {
        "1": node(
            RGTHREE,
            lora_1=lora,
            LORA_2={**lora, "lora": "off.safetensors", "on": False},
            lora_3={**lora, "lora": "None"},
            lora_4={**lora, "lora": None},
            lora_5={**lora, "lora": "none of it.safetensors", "strength": 0},
            lora_6={**lora, "lora": "clip only.safetensors", "strength": 0, "strengthTwo": 0.5},
            other=lora,
            PowerLoraLoaderHeaderWidget={"type": "PowerLoraLoaderHeaderWidget"},
        )
    }
    references = found(document)
    assert [(r.input, r.name, r.folder, r.within) for r in references] == [
        ("lora_1", "a.safetensors", "loras", ("lora",)),
        ("lora_6", "clip only.safetensors", "loras", ("lora",)),
    ]
    assert references[0].place == ("1", "lora_1.lora")
    assert found(document, catalog()) == references  # where the pack is not installed, too


def test_lora_manager_names_its_active_loras_without_their_endings() -> None:
    loras = [
        {"name": "first", "active": True, "strength": 1},
        {"name": "second", "active": False, "strength": 1},
        {"name": "third", "active": True, "strength": 0.5},
        {"name": 3, "active": True},
        "fourth",
    ]
    document = {"1": node(MANAGER, text="<lora:first:1>", loras={"__value__": loras})}
    references = found(document)
    assert [(r.name, r.within) for r in references] == [
        ("first", ("__value__", 0, "name")),
        ("third", ("__value__", 2, "name")),
    ]
    assert len({r.place for r in references}) == 2
    changed = put(parse(document), references[1], "url/0a1b.safetensors")
    assert changed.nodes["1"].inputs["loras"]["__value__"][2] == {**loras[2], "name": "0a1b"}
    assert changed.nodes["1"].inputs["loras"]["__value__"][:2] == loras[:2]


@pytest.mark.parametrize("loras", [None, [], ["1", 0], {"__value__": "first"}])
def test_lora_manager_without_its_list_names_nothing(loras: Any) -> None:
    assert found({"1": node(MANAGER, text="<lora:first:1>", loras=loras)}) == []


def test_a_name_is_put_only_where_the_node_still_has_a_place_for_it() -> None:
    lora = {"on": True, "lora": "a.safetensors", "strength": 1}
    (reference,) = found({"1": node(RGTHREE, lora_1=lora)})
    another = parse({"1": node(RGTHREE, lora_1="a.safetensors")})
    assert put(another, reference, "b.safetensors") == another


# Embeddings


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("embedding:easy", ["easy"]),
        ("a fox, embedding:easy.pt, embedding:sub/other", ["easy.pt", "sub/other"]),
        ("(embedding:easy:1.2)", ["easy"]),
        ("(a fox (embedding:easy), red:1.3)", ["easy"]),
        ("((embedding:easy:1.2):0.9) embedding:easy", ["easy"]),
        ("embedding:a<lora:x:1> embedding:b[0]", ["a", "b"]),
        ("embedding:a(b)", ["a"]),
        ("embedding:a\\(b\\)", ["a(b)"]),
        ("embedding:a\nembedding:b", ["a", "b"]),
        ("embedding:a:1.2", ["a:1.2"]),
        ("no-embedding:easy", []),
        ("a,embedding:easy", []),
        ("Embedding:easy", []),
        ("(embedding:5)", []),
        ("embedding: easy", ["easy"]),
        ("embedding:,", []),
        ("embedding:", []),
        ("(" * 3000 + "embedding:x", []),
    ],
)
def test_embeddings_are_read_as_comfyui_reads_them(text: str, names: list[str]) -> None:
    assert embedding_names(text) == names


def test_the_embeddings_of_every_text_are_found() -> None:
    document = {
        "1": node("CLIPTextEncode", "Prompt", text="embedding:a, (embedding:b:1.1)", clip=["3", 0]),
        "2": node("PrimitiveStringMultiline", value="embedding:c"),
    }
    assert [(r.folder, r.name, r.form, r.certain) for r in found(document)] == [
        ("embeddings", "a", "token", False),
        ("embeddings", "b", "token", False),
        ("embeddings", "c", "token", False),
    ]


@given(st.text(alphabet="ab(){}:,. 1\\\n<[") | st.text())
def test_any_text_can_be_read_for_embeddings(text: str) -> None:
    for name in embedding_names(f"{text} embedding:x {text}"):
        assert name
        assert not name.startswith(",")


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("embedding:old", "embedding:new.pt"),
        (
            "x (embedding:old:1.2), embedding:old, y",
            "x (embedding:new.pt:1.2), embedding:new.pt, y",
        ),
        ("embedding:old, embedding:older embedding:old.pt", None),
        ("an old fox embedding:old<x>", "an old fox embedding:new.pt<x>"),
    ],
)
def test_another_embedding_is_put_into_the_text(text: str, after: str | None) -> None:
    document = {"1": node("CLIPTextEncode", text=text)}
    reference = next(r for r in found(document) if r.name == "old")
    changed = put(parse(document), reference, "new.pt").nodes["1"].inputs["text"]
    assert changed == (after or "embedding:new.pt, embedding:older embedding:old.pt")


# Names


def form(name: str, kind: Any) -> Reference:
    return Reference("1", "T", "C", "i", "loras", name, form=kind)


@pytest.mark.parametrize(
    ("kind", "name", "file", "is_it"),
    [
        ("path", "a.pt", "a.pt", True),
        ("path", "a.pt", "s/a.pt", False),
        ("path", "a", "a.pt", False),
        ("path", "s\\a.pt", "s/a.pt", False),
        ("token", "a", "a.safetensors", True),
        ("token", "a", "s/a.bin", True),
        ("token", "a", "s/a.ckpt", False),
        ("token", "s/a", "a.pt", False),
        ("lora", "s/a.safetensors", "t/a.safetensors", True),
        ("lora", "a.safetensors", "b.safetensors", False),
        ("stem", "a", "s/a.safetensors", True),
        ("stem", "a", "s/ab.safetensors", False),
    ],
)
def test_a_name_stands_for_the_files_that_its_node_finds(
    kind: Any, name: str, file: str, is_it: bool
) -> None:
    assert stands_for(form(name, kind), file) is is_it


@given(st.sampled_from(["path", "token", "lora", "stem"]), st.text(alphabet="ab/."))
def test_every_spelling_is_found(kind: Any, text: str) -> None:
    name = normalised(text)
    if name is not None:
        tried = spellings(form(text, kind), name)
        assert all(means(form(text, kind), tried, file) for file in tried)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a #2.pt", "a #2.pt"),
        ("https://me:pw@host/a.pt?token=1", "https://host/a.pt"),
        ("civitai.com/models/1?token=1", "civitai.com/models/1"),
    ],
)
def test_a_name_is_shown_without_secrets(name: str, shown: str) -> None:
    assert form(name, "path").shown == shown
