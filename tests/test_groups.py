"""Old group nodes come out as the nodes inside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from editor_files import catalog_of, document, save_image, sent, subgraph, ui
from graphs import catalog

from comfy_runner.convert import ui as parsing
from comfy_runner.convert.groups import unpack
from comfy_runner.errors import CallerError, InvalidWorkflow


def group(
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Sequence[Any]] = (),
    external: Sequence[Sequence[Any]] = (),
    **config: Any,
) -> dict[str, Any]:
    """An entry of `extra.groupNodes`; `config` is `n0` for the first node and so on."""
    return {
        "nodes": [{**node, "index": number} for number, node in enumerate(nodes)],
        "links": [list(link) for link in links],
        "external": [list(entry) for entry in external],
        "config": {name[1:]: entry for name, entry in config.items()},
    }


def inner(
    node_type: str,
    values: Any = None,
    inputs: Sequence[tuple[str, str]] = (),
    widgets: Sequence[str] = (),
    **rest: Any,
) -> dict[str, Any]:
    """A node inside a group; `inputs` are names and types, `widgets` inputs that were widgets."""
    slots = [{"name": name, "type": kind, "link": None} for name, kind in inputs]
    slots += [
        {"name": name, "type": "*", "link": None, "widget": {"name": name}} for name in widgets
    ]
    stored = {} if values is None else {"widgets_values": values}
    return {"type": node_type, "mode": 0, "inputs": slots, **stored, **rest}


def file(
    nodes: Sequence[Any], links: Sequence[Any] = (), /, *subgraphs: Any, **groups: Any
) -> dict[str, Any]:
    """A file with these groups."""
    return document(nodes, links, subgraphs, extra={"groupNodes": groups})


def inputs_of(document: Mapping[str, Any], node_type: str, **how: Any) -> dict[str, Any]:
    """The inputs of the one node of that class."""
    (found,) = [node for node in sent(document, **how).values() if node["class_type"] == node_type]
    return dict(found["inputs"])


EMPTY = inner("EmptyImage", [64, 65, 1, 0])
INVERT = inner("ImageInvert", inputs=[("image", "IMAGE")])
TURNED = group([EMPTY, INVERT], [(0, 0, 1, 0, 1, "IMAGE")], [(1, 0, "IMAGE")])
"""A picture is made and inverted."""
SAVED = (1, 5, 0, 6, 0, "IMAGE")


@pytest.mark.parametrize("prefix", ["workflow>", "workflow/"])
def test_inner_nodes_get_the_next_ids_and_then_the_instance(prefix: str) -> None:
    made = sent(file([ui(5, prefix + "g", [128, 129, 1, 7]), save_image(6, 1)], [SAVED], g=TURNED))
    assert {key: (node["class_type"], node["inputs"]) for key, node in made.items()} == {
        "6": ("SaveImage", {"filename_prefix": "p", "images": ["9:8", 0]}),
        "9:7": ("EmptyImage", {"width": 128, "height": 129, "batch_size": 1, "color": 7}),
        "9:8": ("ImageInvert", {"image": ["9:7", 0]}),
    }


def test_each_group_node_has_nodes_and_values_of_its_own() -> None:
    nodes = [ui(1, "workflow>g", [1, 2, 3, 4]), ui(2, "workflow>g", [5, 6, 7, 8])]
    made = sent(
        file(
            [*nodes, save_image(3, 1), save_image(4, 2)],
            [(1, 1, 0, 3, 0, "IMAGE"), (2, 2, 0, 4, 0, "IMAGE")],
            g=TURNED,
        )
    )
    assert made["7:5"]["inputs"]["width"] == 1
    assert made["10:8"]["inputs"]["width"] == 5
    assert made["3"]["inputs"]["images"] == ["7:6", 0]
    assert made["4"]["inputs"]["images"] == ["10:9", 0]


def test_ids_go_on_after_those_of_subgraphs() -> None:
    inside = subgraph(
        "s", [ui(40, "EmptyImage")], [(1, 40, 0, -20, 0, "IMAGE")], outputs=[("out", "IMAGE")]
    )
    nodes = [ui(1, "s"), save_image(2, 1), ui(3, "workflow>g"), save_image(4, 2)]
    links = [(1, 1, 0, 2, 0, "IMAGE"), (2, 3, 0, 4, 0, "IMAGE")]
    made = sent(file(nodes, links, inside, g=TURNED))
    assert set(made) == {"2", "1:40", "4", "43:41", "43:42"}


def test_a_file_without_group_nodes_is_returned_as_it_is() -> None:
    read = parsing.read(document([save_image(1, None)], extra={"groupNodes": {}}))
    assert unpack(read, catalog()) is read


SAMPLER = [("model", "MODEL"), ("positive", "CONDITIONING")]
SAMPLER += [("negative", "CONDITIONING"), ("latent_image", "LATENT")]
SAMPLER_WIDGETS = ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"]
SAMPLED = {
    "seed": 5,
    "steps": 6,
    "cfg": 7.5,
    "sampler_name": "heun",
    "scheduler": "karras",
    "denoise": 0.5,
}


def sampling(sampler: dict[str, Any], links: Sequence[Any] = ()) -> dict[str, Any]:
    """A sampler between an empty latent and a decoder, the rest from outside."""
    latent = inner("EmptyLatentImage", [64, 64, 1])
    decoder = inner("VAEDecode", inputs=[("samples", "LATENT"), ("vae", "VAE")])
    wires = [(0, 0, 1, 3, 1, "LATENT"), (1, 0, 2, 0, 2, "LATENT"), *links]
    return group([latent, sampler, decoder], wires)


def with_sampling(
    inside: dict[str, Any], values: Any, *more: dict[str, Any], **links: Any
) -> dict[str, Any]:
    """A file around it; `links` are more inputs of the group node."""
    names = ("model", "positive", "negative", "vae")
    outside = [ui(1, "CheckpointLoaderSimple", ["x"])]
    outside += [ui(2, "CLIPTextEncode", ["yes"], links={"clip": 5})]
    outside += [ui(3, "CLIPTextEncode", ["no"], links={"clip": 6})]
    connected = dict(zip(names, (1, 2, 3, 4), strict=True)) | links
    outside += [ui(4, "workflow>g", values, links=connected), save_image(9, 7), *more]
    wires = [(1, 1, 0, 4, 0, "MODEL"), (2, 2, 0, 4, 1, "CONDITIONING")]
    wires += [(3, 3, 0, 4, 2, "CONDITIONING"), (4, 1, 2, 4, 3, "VAE")]
    wires += [(5, 1, 1, 2, 0, "CLIP"), (6, 1, 1, 3, 0, "CLIP"), (7, 4, 0, 9, 0, "IMAGE")]
    wires += [(8, 8, 0, 4, 4, "INT")]
    return file(outside, wires, g=inside)


def test_values_follow_the_inner_widgets_and_a_seed_keeps_its_control_place() -> None:
    sampler = inner("KSampler", [1, "fixed", 2, 3, "euler", "normal", 1], SAMPLER)
    values = [512, 256, 2, 5, "randomize", 6, 7.5, "heun", "karras", 0.5]
    made = with_sampling(sampling(sampler), values)
    assert inputs_of(made, "KSampler") == SAMPLED | {
        "model": ["1", 0],
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["13:10", 0],
    }
    assert inputs_of(made, "EmptyLatentImage") == {"width": 512, "height": 256, "batch_size": 2}
    assert inputs_of(made, "VAEDecode") == {"samples": ["13:11", 0], "vae": ["1", 2]}


def test_widgets_that_are_inputs_too_come_last() -> None:
    sampler = inner(
        "KSampler", [1, "fixed", 2, 3, "euler", "normal", 1], SAMPLER, widgets=["steps", "cfg"]
    )
    made = with_sampling(
        sampling(sampler), [5, "fixed", "heun", "karras", 0.5, 512, 256, 2, 6, 7.5]
    )
    # Those of the empty latent come first, as its own slots are not listed.
    assert inputs_of(made, "EmptyLatentImage")["width"] == 5
    made = with_sampling(
        sampling(sampler), [512, 256, 2, 5, "fixed", "heun", "karras", 0.5, 6, 7.5]
    )
    assert inputs_of(made, "KSampler").items() >= SAMPLED.items()


def test_a_widget_that_is_connected_outside_gets_the_connection() -> None:
    sampler = inner(
        "KSampler", [1, "fixed", 2, 3, "euler", "normal", 1], SAMPLER, widgets=["steps"]
    )
    values = [512, 256, 2, 5, "fixed", 7.5, "heun", "karras", 0.5, 6]
    made = with_sampling(sampling(sampler), values, ui(8, "PrimitiveInt", [33]), steps=8)
    assert inputs_of(made, "KSampler")["steps"] == ["8", 0]
    assert inputs_of(made, "KSampler")["cfg"] == 7.5
    muted = with_sampling(sampling(sampler), values, ui(8, "PrimitiveInt", [33], mode=2), steps=8)
    assert inputs_of(muted, "KSampler")["steps"] == 6


def test_a_widget_that_is_connected_inside_has_no_place() -> None:
    sampler = inner(
        "KSampler", [1, "fixed", 2, 3, "euler", "normal", 1], SAMPLER, widgets=SAMPLER_WIDGETS
    )
    count = inner("PrimitiveInt", [3, "fixed"])
    inside = sampling(sampler, [(3, 0, 1, 5, 9, "INT")])
    inside["nodes"].append({**count, "index": 3})
    values = [512, 256, 2, 33, "fixed", 5, "fixed", 7.5, "heun", "karras", 0.5]
    made = with_sampling(inside, values)
    assert inputs_of(made, "PrimitiveInt") == {"value": 33}
    assert inputs_of(made, "KSampler").items() >= (SAMPLED | {"steps": ["14:13", 0]}).items()


def test_widgets_that_are_inputs_are_ordered_by_slot_as_text() -> None:
    names = [f"w{number}" for number in range(12)]
    required = {name: ["INT", {"default": 0}] for name in names}
    classes = catalog_of({"Many": {"input": {"required": required}, "output": ["IMAGE"]}})
    inside = group([inner("Many", [0] * 12, widgets=names)])
    made = file([ui(5, "workflow>g", list(range(12))), save_image(6, 1)], [SAVED], g=inside)
    order = ["w0", "w1", "w10", "w11", "w2", "w3", "w4", "w5", "w6", "w7", "w8", "w9"]
    assert inputs_of(made, "Many", catalog=classes) == {
        name: number for number, name in enumerate(order)
    }


def test_values_that_the_group_node_lacks_are_those_inside() -> None:
    for stored, width, color in ((None, 64, 0), ([], 64, 0), ([1, 2, 3], 1, 0)):
        made = file([ui(5, "workflow>g", stored), save_image(6, 1)], [SAVED], g=TURNED)
        found = inputs_of(made, "EmptyImage")
        assert (found["width"], found["color"]) == (width, color)


def test_an_input_that_is_newer_than_the_file_takes_no_place() -> None:
    old = inner("EmptyImage", [64, 65])
    inside = group([old, inner("ImageBlur", [1, 1.0], [("image", "IMAGE")])], [(0, 0, 1, 0)])
    made = file([ui(5, "workflow>g", [8, 9, 3, 0.5]), save_image(6, 1)], [SAVED], g=inside)
    assert inputs_of(made, "EmptyImage") == {"width": 8, "height": 9, "batch_size": 1, "color": 0}
    assert inputs_of(made, "ImageBlur").items() >= {"blur_radius": 3, "sigma": 0.5}.items()


BLEND = inner("ImageBlend", [0.5, "normal"], [("image1", "IMAGE"), ("image2", "IMAGE")])


def blended(
    inside: dict[str, Any], names: Sequence[str], values: Any = None
) -> dict[str, dict[str, Any]]:
    """What is sent where one picture goes into each of these inputs."""
    nodes = [ui(number, "EmptyImage") for number, _ in enumerate(names, 10)]
    links = {name: number for number, name in enumerate(names, 10)}
    wires = [(number, number, 0, 5, 0, "IMAGE") for number in links.values()]
    made = [*nodes, ui(5, "workflow>g", values, links=links), save_image(6, 1)]
    return sent(file(made, [*wires, SAVED], g=inside))


def test_repeated_names_have_the_title_before_them() -> None:
    titled = {**BLEND, "title": "Mix"}
    inside = group(
        [BLEND, titled, titled, BLEND],
        [(0, 0, 1, 0), (1, 0, 2, 0), (2, 0, 3, 0)],
        [],
    )
    names = ["image1", "image2", "Mix image2", "Mix 2 image2", "ImageBlend image2"]
    values = [0.1, "screen", 0.2, "multiply", 0.3, "overlay", 0.4, "difference"]
    made = [n["inputs"] for n in blended(inside, names, values).values() if "image1" in n["inputs"]]
    assert made == [
        {"blend_factor": 0.1, "blend_mode": "screen", "image1": ["10", 0], "image2": ["11", 0]},
        {
            "blend_factor": 0.2,
            "blend_mode": "multiply",
            "image1": ["19:15", 0],
            "image2": ["12", 0],
        },
        {
            "blend_factor": 0.3,
            "blend_mode": "overlay",
            "image1": ["19:16", 0],
            "image2": ["13", 0],
        },
        {
            "blend_factor": 0.4,
            "blend_mode": "difference",
            "image1": ["19:17", 0],
            "image2": ["14", 0],
        },
    ]


def test_an_author_may_have_renamed_and_hidden_inputs() -> None:
    config = {"input": {"image1": {"name": "top"}, "image2": {"visible": False}}}
    made = blended(group([BLEND], n0=config), ["top", "image2"])
    assert made["13:12"]["inputs"] == {
        "blend_factor": 0.5,
        "blend_mode": "normal",
        "image1": ["10", 0],
    }


def test_a_label_is_a_name() -> None:
    slots = [{"name": "image1", "type": "IMAGE", "label": "front"}, {"name": "image2"}]
    made = blended(group([{**BLEND, "inputs": slots}]), ["front", "image2"])
    assert made["13:12"]["inputs"]["image1"] == ["10", 0]


def test_inputs_under_other_names_go_by_their_order() -> None:
    made = blended(group([BLEND]), ["a", "b"])
    assert made["13:12"]["inputs"]["image1"] == ["10", 0]
    assert made["13:12"]["inputs"]["image2"] == ["11", 0]


def from_output(inside: dict[str, Any], slot: int, outputs: Sequence[str] = ()) -> Any:
    """What is saved where the group node's output of that number is connected."""
    listed = [{"name": name, "type": "IMAGE"} for name in outputs]
    nodes = [ui(5, "workflow>g", outputs=listed), save_image(6, 1)]
    made = sent(file(nodes, [(1, 5, slot, 6, 0, "IMAGE")], g=inside))
    return made["6"]["inputs"].get("images")


CHAIN = [(0, 0, 1, 0, 1, "IMAGE")]


def test_outputs_are_those_that_are_free_or_connected_outside_too() -> None:
    assert from_output(group([EMPTY, INVERT], CHAIN), 0) == ["9:8", 0]
    both = group([EMPTY, INVERT], CHAIN, [(0, 0, "IMAGE")])
    assert from_output(both, 0) == ["9:7", 0]
    assert from_output(both, 1) == ["9:8", 0]
    shown = group([EMPTY, INVERT], CHAIN, n0={"output": {"0": {"visible": True}}})
    assert from_output(shown, 0) == ["9:7", 0]
    hidden = group([EMPTY, INVERT], n0={"output": {"0": {"visible": False}}})
    assert from_output(hidden, 0) == ["9:8", 0]


def test_an_external_entry_with_a_whole_node_in_it_never_counted() -> None:
    odd = group([EMPTY, INVERT], CHAIN, [({**EMPTY, "index": 0}, 0, "IMAGE")])
    assert from_output(odd, 0) == ["9:8", 0]


def test_outputs_go_by_name_where_a_class_has_got_another() -> None:
    two = group([EMPTY, {**INVERT, "title": "Turn"}, EMPTY])
    assert from_output(two, 0, ["IMAGE", "Turn IMAGE"]) == ["10:7", 0]
    assert from_output(two, 0, ["Turn IMAGE", "EmptyImage IMAGE"]) == ["10:8", 0]
    assert from_output(two, 1, ["Turn IMAGE", "EmptyImage IMAGE"]) == ["10:9", 0]


REROUTE = inner("Reroute", inputs=[("", "*")], outputs=[{"name": "", "type": "*"}])


def test_a_reroute_is_an_input_of_the_type_that_it_feeds() -> None:
    inside = group([REROUTE, BLEND], [(None, 0, 0, 0, 3, "IMAGE"), (0, 0, 1, 0), (0, 0, 1, 1)])
    made = blended(inside, ["IMAGE"])
    assert made["13:12"]["inputs"]["image1"] == ["10", 0]
    assert made["13:12"]["inputs"]["image2"] == ["10", 0]
    named = group(
        [REROUTE, BLEND], [(0, 0, 1, 0), (0, 0, 1, 1)], n0={"input": {"IMAGE": {"name": "in"}}}
    )
    assert blended(named, ["in"])["13:12"]["inputs"]["image2"] == ["10", 0]


def test_a_reroute_between_two_nodes_shows_nothing() -> None:
    inside = group([EMPTY, REROUTE, INVERT], [(0, 0, 1, 0, 1, "*"), (1, 0, 2, 0, 2, "IMAGE")])
    assert from_output(inside, 0) == ["10:9", 0]
    made = file([ui(5, "workflow>g"), save_image(6, 1)], [SAVED], g=inside)
    assert inputs_of(made, "ImageInvert") == {"image": ["10:7", 0]}


def test_a_reroute_may_pass_straight_through() -> None:
    pipe = group([REROUTE, EMPTY], [(None, 0, 0, 0, 3, "IMAGE")])
    assert blended(pipe, ["IMAGE"])["6"]["inputs"]["images"] == ["10", 0]


def test_a_reroute_may_give_what_an_inner_node_makes() -> None:
    inside = group([EMPTY, REROUTE], [(0, 0, 1, 0, 1, "IMAGE")], [(1, 0, "IMAGE")])
    assert from_output(inside, 0) == ["9:7", 0]


def test_a_primitive_that_has_no_widget_is_an_input() -> None:
    inside = group([inner("PrimitiveNode", [3]), BLEND], [(0, 0, 1, 0, 1, "IMAGE")])
    made = blended(inside, ["value", "image2"])
    assert "image1" not in made["14:13"]["inputs"]
    assert made["14:13"]["inputs"]["image2"] == ["11", 0]


def test_a_primitive_inside_has_a_value_and_a_control_place() -> None:
    primitive = inner("PrimitiveNode", [3, "fixed"])
    blur = inner("ImageBlur", [1, 1.0], [("image", "IMAGE")], widgets=["blur_radius"])
    inside = group([primitive, EMPTY, blur], [(0, 0, 2, 1, 1, "INT"), (1, 0, 2, 0, 2, "IMAGE")])
    values = [7, "randomize", 8, 9, 1, 0, 0.5]
    made = file([ui(5, "workflow>g", values), save_image(6, 1)], [SAVED], g=inside)
    assert inputs_of(made, "ImageBlur") == {
        "image": ["10:8", 0],
        "blur_radius": 7,
        "sigma": 0.5,
    }
    assert inputs_of(made, "EmptyImage")["width"] == 8


def test_a_primitive_of_choices_has_a_filter_too() -> None:
    primitive = inner("PrimitiveNode", ["normal", "fixed", ""], title="Mode")
    blend = {**BLEND, "inputs": [*BLEND["inputs"], *inner("", widgets=["blend_mode"])["inputs"]]}
    inside = group([primitive, blend], [(0, 0, 1, 2, 1, "COMBO")])
    made = blended(inside, ["image1"], ["screen", "fixed", "", 0.25])
    assert made["13:12"]["inputs"] == {
        "blend_factor": 0.25,
        "blend_mode": "screen",
        "image1": ["10", 0],
    }


def test_a_primitive_or_note_that_is_connected_to_nothing_has_no_place() -> None:
    nodes = [inner("PrimitiveNode", [3, "fixed"]), inner("Note", ["text"]), EMPTY]
    made = file([ui(5, "workflow>g", [8, 9, 1, 0]), save_image(6, 1)], [SAVED], g=group(nodes))
    assert inputs_of(made, "EmptyImage")["width"] == 8


def test_a_group_node_inside_a_group_node_is_unpacked_with_its_values() -> None:
    outer = group(
        [inner("workflow/g", [1, 2, 1, 0]), inner("ImageBlur", [1, 1.0], [("image", "IMAGE")])],
        [(0, 0, 1, 0)],
    )
    made = sent(
        file(
            [ui(5, "workflow>h", [8, 9, 1, 0, 3, 0.5]), save_image(6, 1)],
            [SAVED],
            g=TURNED,
            h=outer,
        )
    )
    assert {key: node["inputs"] for key, node in made.items()} == {
        "6": {"filename_prefix": "p", "images": ["9:8", 0]},
        "9:8": {"image": ["9:12:11", 0], "blur_radius": 3, "sigma": 0.5},
        "9:12:10": {"width": 8, "height": 9, "batch_size": 1, "color": 0},
        "9:12:11": {"image": ["9:12:10", 0]},
    }


def test_a_group_node_inside_a_subgraph_stays_there() -> None:
    inside = subgraph(
        "s",
        [ui(3, "workflow>g", [8, 9, 1, 0])],
        [(1, 3, 0, -20, 0, "IMAGE")],
        outputs=[("out", "IMAGE")],
    )
    made = sent(file([ui(5, "s"), save_image(6, 1)], [SAVED], inside, g=TURNED))
    assert made["6"]["inputs"]["images"] == ["5:9:8", 0]
    assert made["5:9:7"]["inputs"]["width"] == 8


def test_a_muted_group_node_is_not_sent() -> None:
    made = sent(file([ui(5, "workflow>g", mode=2), save_image(6, 1)], [SAVED], g=TURNED))
    assert set(made) == {"6"}
    assert "images" not in made["6"]["inputs"]


def test_a_bypassed_group_node_passes_its_input_on() -> None:
    nodes = [ui(4, "EmptyImage"), save_image(6, 1)]
    nodes += [ui(5, "workflow>g", mode=4, links={"image2": 2})]
    wires = [SAVED, (2, 4, 0, 5, 1, "IMAGE")]
    made = sent(file(nodes, wires, g=group([EMPTY, BLEND], [(0, 0, 1, 0)])))
    assert set(made) == {"4", "6"}
    assert made["6"]["inputs"]["images"] == ["4", 0]


def test_a_muted_inner_node_stays_muted() -> None:
    inside = group([EMPTY, {**INVERT, "mode": 4}], CHAIN)
    assert from_output(inside, 0) == ["9:7", 0]


def test_members_of_dynamic_inputs_keep_their_connections() -> None:
    inside = group([inner("BatchImagesNode", inputs=[("images.image0", "IMAGE")]), EMPTY])
    made = blended(inside, ["images.image0", "images.image2"])
    assert made["14:12"]["inputs"] == {
        "images.image0": ["10", 0],
        "images.image2": ["11", 0],
    }


UNKNOWN = inner("NoSuchClass", ["a", "b"], [("image", "IMAGE")], outputs=[{"type": "IMAGE"}])


def test_an_unknown_class_inside_is_named_with_its_id() -> None:
    inside = group([EMPTY, {**UNKNOWN, "title": "Odd one"}], CHAIN)
    made = file([ui(5, "workflow>g"), save_image(6, 1)], [SAVED], g=inside)
    with pytest.raises(InvalidWorkflow) as caught:
        sent(made)
    (problem,) = caught.value.problems
    assert (problem.node_id, problem.title) == ("9:8", "Odd one")
    assert "'NoSuchClass'" in problem.what


@pytest.mark.parametrize("values", [["x", "y", 8, 9, 1, 0], [8, 9, 1, 0]])
def test_values_of_an_unknown_class_have_places_unless_there_are_too_few(values: list[Any]) -> None:
    made = file([ui(5, "workflow>g", values), save_image(6, 1)], g=group([UNKNOWN, EMPTY]))
    made["links"] = [[1, 5, 1, 6, 0, "IMAGE"]]
    assert inputs_of(made, "EmptyImage")["width"] == 8


def test_a_group_that_the_file_lacks_is_named() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file([ui(5, "workflow>gone"), save_image(6, 1)], [SAVED], g=TURNED))
    (problem,) = caught.value.problems
    assert problem.node_id == "5"
    assert "'workflow>gone'" in problem.what


@pytest.mark.parametrize("entry", [None, 3, "EmptyImage", [], {}, {"type": 4}, {"type": ""}])
def test_an_entry_that_is_no_node_is_told_at_the_group_node(entry: Any) -> None:
    broken = {**TURNED, "nodes": [TURNED["nodes"][0], entry]}
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file([ui(5, "workflow>g"), save_image(6, 1)], [SAVED], g=broken))
    (problem,) = caught.value.problems
    assert (problem.code, problem.node_id) == ("not_a_node", "5")
    assert problem.what == "Entry 1 of the nodes of group node 'g' is no node."


ODD = [None, 0, True, "x", [], {}, [None], [[0]], [[0, 0, 9, 0]], [[9, 0, 1, 0]], [["a", {}, 1, 0]]]


@pytest.mark.parametrize("member", ["nodes", "links", "external", "config"])
@pytest.mark.parametrize("odd", [*ODD, [[0, 0, 1, 99]], [[-1, -1, -1, -1]], {"0": 3}, {"0": []}])
def test_malformed_groups_end_in_nothing_worse_than_a_problem(member: str, odd: Any) -> None:
    made = file([ui(5, "workflow>g"), save_image(6, 1)], [SAVED], g={**TURNED, member: odd})
    assert blamed(made) <= {"5", "6"}


def blamed(document: Mapping[str, Any]) -> set[str]:
    """Ids of the nodes that are at fault, or none where the file is converted."""
    try:
        sent(document)
    except CallerError as error:
        return {problem.node_id for problem in error.problems}
    return set()


@pytest.mark.parametrize("odd", [None, 3, "g", [], [TURNED], {"g": None}, {"g": []}, {"g": {}}])
def test_a_file_whose_groups_are_none_has_an_unknown_node(odd: Any) -> None:
    made = document([ui(5, "workflow>g"), save_image(6, 1)], [SAVED], extra={"groupNodes": odd})
    assert blamed(made) == {"5"}


@pytest.mark.parametrize("odd", ODD)
def test_malformed_inner_nodes_end_in_nothing_worse_than_a_problem(odd: Any) -> None:
    for member in ("inputs", "outputs", "widgets_values", "mode", "title", "properties"):
        nodes = [{**node, member: odd} for node in TURNED["nodes"]]
        made = file([ui(5, "workflow>g"), save_image(6, 1)], [SAVED], g={**TURNED, "nodes": nodes})
        assert sent(made)["6"]["inputs"]["images"] == ["9:8", 0]


def test_a_group_node_that_holds_itself_is_refused() -> None:
    nodes = [ui(5, "workflow>g")]
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file(nodes, g=group([inner("workflow>h")]), h=group([inner("workflow/g")])))
    (problem,) = caught.value.problems
    assert (problem.code, problem.node_id) == ("endless_subgraph", "5")


def test_group_nodes_stand_in_each_other_only_so_deep() -> None:
    groups = {f"g{n}": group([inner(f"workflow>g{n + 1}")]) for n in range(60)}
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file([ui(5, "workflow>g0")], **groups))
    assert caught.value.problems[0].code == "too_deep"


def test_group_nodes_that_multiply_are_refused_before_they_are_made() -> None:
    groups = {f"g{n}": group([inner(f"workflow>g{n + 1}")] * 10) for n in range(9)}
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file([ui(5, "workflow>g0")], g9=group([EMPTY]), **groups))
    assert caught.value.problems[0].code == "too_many_nodes"
    many = [ui(number, "workflow>g") for number in range(500)]
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file(many, g=group([EMPTY] * 50)))
    assert caught.value.problems[0].code == "too_many_nodes"


def test_the_document_stays_as_it_was() -> None:
    read = parsing.read(file([ui(5, "workflow>g", [1, 2, 1, 0])], [], g=TURNED))
    before = repr(read)
    made = unpack(read, catalog())
    assert repr(read) == before
    assert repr(unpack(read, catalog())) == repr(made)
