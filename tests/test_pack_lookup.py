"""Which pack has a node class, and what to type to add it."""

import pytest
from editor_files import ui
from graphs import catalog

from comfy_runner.graph.missing import Origin
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.packs.lock import GitSource, LockedPack, PackLock, RegistrySource
from comfy_runner.packs.lookup import Answer, Use, uses, why

COMMIT = "a1" * 20
KJ = "https://github.com/kijai/ComfyUI-KJNodes"


@pytest.fixture(scope="module")
def own() -> NodeCatalog:
    return catalog()


def found(use: Use, own: NodeCatalog, *packs: LockedPack) -> Answer:
    return why(use, PackLock(packs), own)


def test_the_classes_of_an_editors_file_are_found_with_their_packs(own: NodeCatalog) -> None:
    inner = "00000000-0000-4000-8000-000000000001"
    document = {
        "nodes": [
            ui(1, "KSampler", properties={"cnr_id": "comfy-core", "ver": "0.3.0"}),
            ui(2, "Fox", properties={"cnr_id": "comfyui-fox", "ver": "1.2.0"}),
            ui(3, "Fox", properties={"aux_id": "a/fox"}),
            ui(4, "Muted", mode=2),
            ui(5, "Bypassed", mode=4),
            ui(6, "Note"),
            ui(7, "Reroute"),
            ui(8, inner),
            ui(9, "Fast Groups Muter (rgthree)"),
        ],
        "links": [],
        "definitions": {
            "subgraphs": [
                {"id": inner, "name": "x", "nodes": [ui(1, "Inner")], "links": []},
            ]
        },
    }
    assert uses(document, own) == (
        Use("KSampler", (Origin("comfy-core", "0.3.0"),)),
        Use("Fox", (Origin("comfyui-fox", "1.2.0"), Origin("a/fox"))),
        Use("Inner"),
    )


def test_the_classes_of_an_api_file_are_found(own: NodeCatalog) -> None:
    graph = {
        "1": {"class_type": "Fox", "inputs": {}},
        "2": {"class_type": "Bear", "inputs": {}},
        "3": {"class_type": "Fox", "inputs": {}},
    }
    assert uses(graph, own) == (Use("Fox"), Use("Bear"))


def test_what_comfyui_itself_has_needs_no_pack(own: NodeCatalog) -> None:
    assert found(Use("KSampler"), own).builtin


def test_the_lock_counts_first(own: NodeCatalog) -> None:
    fox = LockedPack(name="fox", source=GitSource(KJ, COMMIT), classes=("Fox",))
    assert found(Use("Fox", (Origin("other"),)), own, fox).locked == (fox,)


@pytest.mark.parametrize(
    "named", [Origin("COMFYUI-KJNODES"), Origin("kijai/ComfyUI-KJNodes"), Origin("comfyui-kjnodes")]
)
def test_a_pack_that_the_file_names_is_known_in_the_lock(own: NodeCatalog, named: Origin) -> None:
    """Its classes may not be: some packs make them up when they are loaded."""
    locked = [
        LockedPack(name="a", source=GitSource(f"{KJ}.git", COMMIT)),
        LockedPack(name="b", source=RegistrySource("ComfyUI-KJNodes", "1.0.0")),
    ]
    for pack in locked:
        answer = found(Use("Made up", (named,)), own, pack)
        by_owner = "/" in named.pack and pack.name == "b"
        assert answer.locked == (() if by_owner else (pack,))


@pytest.mark.parametrize(
    ("named", "command"),
    [
        (Origin("comfyui-fox", "1.2.0"), "comfyui-fox --ref 1.2.0"),
        (Origin("comfyui-fox"), "comfyui-fox"),
        (Origin("comfyui-fox", COMMIT), "comfyui-fox"),
        (Origin("comfyui-kjnodes", COMMIT), f"{KJ} --ref {COMMIT}"),
        (Origin("a/fox", COMMIT), f"a/fox --ref {COMMIT}"),
        (Origin("a/fox", "unknown version"), "a/fox"),
    ],
)
def test_what_the_file_names_is_what_to_type(own: NodeCatalog, named: Origin, command: str) -> None:
    answer = found(Use("Fox", (named,)), own)
    assert answer.commands == (f"comfy-runner nodes add {command}",)
    assert answer.source == "the workflow"


@pytest.mark.parametrize("pack", ["comfy-core", "fox; rm -rf /", "$(x)", "-fox", "a/b/c"])
def test_a_file_cannot_have_something_else_typed(own: NodeCatalog, pack: str) -> None:
    assert found(Use("Fox", (Origin(pack, "1; rm"),)), own).commands == ()


def test_well_known_packs_are_found(own: NodeCatalog) -> None:
    answer = found(Use("ImageResizeKJv2"), own)
    assert answer.commands == (f"comfy-runner nodes add {KJ}",)
    assert answer.source == "the list of well-known packs"


def test_a_name_that_nobody_knows_is_compared_with_those_there_are(own: NodeCatalog) -> None:
    answer = found(Use("KSamplr"), own)
    assert answer.commands == ()
    assert "KSampler" in answer.similar
    fox = LockedPack(name="fox", source=GitSource(KJ, COMMIT), classes=("Snow Fox",))
    assert found(Use("snow fox"), own, fox).similar == ("Snow Fox",)
