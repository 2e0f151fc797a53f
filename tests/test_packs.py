"""Nodes of packs: one test for each rule of the table, with nodes in the shape of real files."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from editor_files import (
    catalog_of,
    document,
    empty_image,
    invert,
    save_image,
    sent,
    subgraph,
    ui,
)

from comfy_runner.convert import convert
from comfy_runner.errors import InvalidWorkflow
from comfy_runner.graph.nodes import NodeCatalog


def made(
    required: Mapping[str, Any],
    optional: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
) -> dict[str, Any]:
    """A class as `/object_info` gives it; one without outputs is an output node."""
    return {
        "input": {"required": dict(required), "optional": dict(optional or {})},
        "output": list(outputs),
        "output_node": not outputs,
    }


H264 = [
    ["pix_fmt", ["yuv420p", "yuv420p10le"]],
    ["crf", "INT", {"default": 19, "min": 0}],
    ["save_metadata", "BOOLEAN", {"default": True}],
]
TEXT = ["STRING", {"multiline": True}]
ON_OFF = ["BOOLEAN", {}]
NUMBER = ["FLOAT", {}]
SEED = ["INT", {"min": -(2**50), "max": 2**50}]
LORA_COMBO = [["Select the LoRA to add to the text"]]
WILDCARD_COMBO = [["Select the Wildcard to add to the text"]]

CLASSES: Mapping[str, Any] = {
    "Power Lora Loader (rgthree)": made(
        {}, {"model": ["MODEL"], "clip": ["CLIP"]}, ["MODEL", "CLIP"]
    ),
    "Power Primitive (rgthree)": made({}, {}, ["*"]),
    "Power Puter (rgthree)": made({}, {}, ["*"]),
    "Power Prompt (rgthree)": made(
        {"prompt": TEXT},
        {
            "opt_model": ["MODEL"],
            "insert_lora": [["CHOOSE", "DISABLE LORAS"]],
            "insert_embedding": [["CHOOSE"]],
            "insert_saved": [["CHOOSE"]],
        },
        ["CONDITIONING", "MODEL", "CLIP", "STRING"],
    ),
    "SDXL Power Prompt - Positive (rgthree)": made(
        {"prompt_g": TEXT, "prompt_l": TEXT},
        {
            "opt_clip_width": ["INT", {"forceInput": True}],
            "insert_lora": [["CHOOSE", "DISABLE LORAS"]],
            "target_width": ["INT", {"default": -1}],
            "crop_width": ["INT", {"default": 0}],
        },
        ["CONDITIONING"],
    ),
    "Seed (rgthree)": made({"seed": SEED}, {}, ["INT"]),
    "Any Switch (rgthree)": made({}, {}, ["*"]),
    "Display Any (rgthree)": made({"source": ["*"]}),
    "Image Comparer (rgthree)": made({}, {"image_a": ["IMAGE"], "image_b": ["IMAGE"]}),
    "ShowText|pysssss": made({"text": ["STRING", {"forceInput": True}]}, {}, ["STRING"]),
    "easy showAnything": made({}, {"anything": ["*"]}),
    "VHS_VideoCombine": made(
        {
            "images": ["IMAGE"],
            "frame_rate": ["FLOAT", {"default": 8}],
            "loop_count": ["INT", {"default": 0}],
            "filename_prefix": ["STRING", {"default": "AnimateDiff"}],
            "format": [["image/gif", "video/h264-mp4"], {"formats": {"video/h264-mp4": H264}}],
            "pingpong": ["BOOLEAN", {"default": False}],
            "save_output": ["BOOLEAN", {"default": True}],
        },
        {"audio": ["AUDIO"]},
    ),
    "VHS_LoadVideo": made(
        {
            "video": [["a.mp4"]],
            "force_rate": ["FLOAT", {"default": 0}],
            "custom_width": ["INT", {"default": 0}],
            "custom_height": ["INT", {"default": 0}],
            "frame_load_cap": ["INT", {"default": 0}],
            "skip_first_frames": ["INT", {"default": 0}],
            "select_every_nth": ["INT", {"default": 1}],
        },
        {},
        ["IMAGE"],
    ),
    "VHS_LoadImages": made(
        {"directory": [["a"]]},
        {
            "image_load_cap": ["INT", {"default": 0}],
            "skip_first_images": ["INT", {"default": 0}],
            "select_every_nth": ["INT", {"default": 1}],
        },
        ["IMAGE"],
    ),
    "Lora Loader (LoraManager)": made(
        {"model": ["MODEL"], "text": ["AUTOCOMPLETE_TEXT_LORAS", {}]}, {}, ["MODEL"]
    ),
    "Lora Stacker (LoraManager)": made(
        {"text": ["AUTOCOMPLETE_TEXT_LORAS", {}], "loras": ["LORAS"]}, {}, ["LORA_STACK"]
    ),
    "Lora Cycler (LoraManager)": made({"cycler_config": ["CYCLER_CONFIG"]}, {}, ["LORA_STACK"]),
    "TriggerWord Toggle (LoraManager)": made(
        {"group_mode": ON_OFF, "default_active": ON_OFF, "allow_strength_adjustment": ON_OFF},
        {"trigger_words": ["STRING", {"forceInput": True}]},
        ["STRING"],
    ),
    "mxSlider": made({"Xi": ["INT"], "Xf": NUMBER, "isfloatX": ["INT"]}, {}, ["*"]),
    "mxSlider2D": made(
        {name: ["INT"] for name in ("Xi", "Xf", "Yi", "Yf", "isfloatX", "isfloatY")}, {}, ["*", "*"]
    ),
    "mxStop": made({"In": ["*"]}, {}, ["*"]),
    "ImpactWildcardEncode": made(
        {
            "wildcard_text": TEXT,
            "populated_text": TEXT,
            "mode": [["populate", "fixed", "reproduce"]],
            "Select to add LoRA": LORA_COMBO,
            "Select to add Wildcard": WILDCARD_COMBO,
            "seed": ["INT", {}],
        },
        {},
        ["CONDITIONING"],
    ),
    "ImpactWildcardProcessor": made(
        {"wildcard_text": TEXT, "populated_text": TEXT, "mode": ["BOOLEAN", {}], "seed": ["INT"]},
        {},
        ["STRING"],
    ),
    "ToDetailerPipe": made(
        {
            "wildcard": TEXT,
            "Select to add LoRA": LORA_COMBO,
            "Select to add Wildcard": WILDCARD_COMBO,
        },
        {},
        ["DETAILER_PIPE"],
    ),
    "ImpactSwitch": made({"select": ["INT"]}, {"input1": ["*"]}, ["*"]),
    "PromptBuilder //Inspire": made(
        {"category": [["a", "b"]], "preset": [["#PRESET"]], "text": TEXT}, {}, ["STRING"]
    ),
    "ConcatConditioningsWithMultiplier //Inspire": made(
        {"conditioning1": ["CONDITIONING"]}, {"multiplier1": NUMBER}, ["CONDITIONING"]
    ),
    "GlobalSeed //Inspire": made(
        {"value": ["INT"], "mode": ON_OFF, "action": [["fixed", "randomize"]]}
    ),
    "Efficient Loader": made(
        {
            "ckpt_name": [["a", "b"]],
            "positive": TEXT,
            "negative": TEXT,
            "token_normalization": [["none", "mean"]],
            "weight_interpretation": [["comfy", "A1111"]],
            "empty_latent_width": ["INT"],
        },
        {},
        ["MODEL"],
    ),
    "KSampler (Efficient)": made(
        {
            "seed": ["INT", {"min": 0}],
            "steps": ["INT"],
            "cfg": NUMBER,
            "sampler_name": [["euler"]],
            "vae_decode": [["true", "false"]],
        },
        {},
        ["LATENT"],
    ),
    "HighRes-Fix Script": made(
        {
            "upscale_type": [["latent", "pixel", "both"]],
            "hires_ckpt_name": [["(use same)"]],
            "latent_upscaler": [["city96", "nearest"]],
            "upscale_by": NUMBER,
            "seed": ["INT"],
            "hires_steps": ["INT"],
            "denoise": NUMBER,
            "iterations": ["INT"],
        },
        {},
        ["SCRIPT"],
    ),
    "ReroutePrimitive|pysssss": made({"value": ["*"]}, {}, ["*"]),
    "CheckpointLoader|pysssss": made(
        {"ckpt_name": [["a.safetensors"]]}, {"prompt": TEXT}, ["MODEL"]
    ),
    "Repeater|pysssss": made(
        {"source": ["*"], "repeats": ["INT"], "output": [["single"]], "node_mode": [["reuse"]]},
        {},
        ["*"],
    ),
    "WithCustom": made(
        {"first": ["THEIR_TYPE"], "second": TEXT, "third": ["INT", {}]}, {}, ["INT"]
    ),
}


@cache
def catalog() -> NodeCatalog:
    return catalog_of(CLASSES)


def one(node: dict[str, Any], **how: Any) -> dict[str, Any]:
    """The inputs that are sent for a node that stands alone."""
    found: dict[str, Any] = sent(document([node]), catalog(), **how)[str(node["id"])]["inputs"]
    return found


def image(file: Any, node_id: str = "9") -> Any:
    """What the saving node of a file gets, or `None`."""
    return sent(file, catalog())[node_id]["inputs"].get("images")


def refused(file: Any) -> str:
    """The text of the one problem of a file."""
    with pytest.raises(InvalidWorkflow) as caught:
        sent(file, catalog())
    [problem] = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    "kind",
    [
        *("Fast Muter (rgthree)", "Fast Bypasser (rgthree)", "Fast Actions Button (rgthree)"),
        *("Fast Groups Muter (rgthree)", "Fast Groups Bypasser (rgthree)"),
        *("Mute / Bypass Repeater (rgthree)", "Mute / Bypass Relay (rgthree)"),
        *("Node Collector (rgthree)", "Node Combiner (rgthree)", "Label (rgthree)"),
        *("Bookmark (rgthree)", "Power Conductor (rgthree)", "Random Unmuter (rgthree)"),
        *("Note Plus (mtb)", "easy bookmark", "Show Metadata [Crystools]"),
    ],
)
def test_a_node_that_only_a_person_uses_is_dropped(kind: str) -> None:
    extra = ui(5, kind, [True], links={"": 2}, outputs=[{"name": "OPT_CONNECTION", "type": "*"}])
    file = document(
        [empty_image(1), invert(2, 3), extra, save_image(9, 1)],
        [(1, 1, 0, 9, 0, "IMAGE"), (2, 2, 0, 5, 0, "*"), (3, 1, 0, 2, 0, "IMAGE")],
    )
    assert sorted(sent(file, catalog())) == ["1", "2", "9"]
    assert not convert(file, catalog()).notes


@pytest.mark.parametrize("kind", ["Reroute (rgthree)", "mxReroute"])
@pytest.mark.parametrize(("mode", "expected"), [(0, ["1", 0]), (4, ["1", 0]), (2, None)])
def test_reroutes_of_packs_pass_on(kind: str, mode: int, expected: Any) -> None:
    reroute = ui(
        2,
        kind,
        mode=mode,
        inputs=[{"name": "", "type": "*", "link": 1}],
        outputs=[{"name": "", "type": "IMAGE", "links": [2]}],
    )
    links = [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 9, 0, "IMAGE")]
    assert image(document([empty_image(1), reroute, save_image(9, 2)], links)) == expected


FAMILIES = [
    ("SetNode", "GetNode"),
    ("easy setNode", "easy getNode"),
    ("SetNode [Eclipse]", "GetNode [Eclipse]"),
]


def setter(
    node_id: Any, name: Any, link: Any, kind: str = "SetNode", **rest: Any
) -> dict[str, Any]:
    return ui(node_id, kind, [name], inputs=[{"name": "IMAGE", "type": "*", "link": link}], **rest)


def getter(node_id: Any, name: Any, kind: str = "GetNode", **rest: Any) -> dict[str, Any]:
    return ui(node_id, kind, [name], outputs=[{"name": "IMAGE", "type": "IMAGE"}], **rest)


def shared(*between: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A picture (1) on link 1, another (2) on link 2, and what node 8 gives is saved by node 9."""
    links = [(1, 1, 0, 3, 0, "IMAGE"), (2, 2, 0, 4, 0, "IMAGE"), (8, 8, 0, 9, 0, "IMAGE")]
    return document([empty_image(1), empty_image(2), *between, save_image(9, 8)], links, **rest)


@pytest.mark.parametrize(("set_kind", "get_kind"), FAMILIES)
def test_a_get_gives_what_its_set_gets(set_kind: str, get_kind: str) -> None:
    file = shared(
        setter(3, "a", 1, set_kind), setter(4, "b", 2, set_kind), getter(8, "b", get_kind)
    )
    made = sent(file, catalog())
    assert made["9"]["inputs"]["images"] == ["2", 0]
    assert made.keys() == {"1", "2", "9"}


@pytest.mark.parametrize("mode", [0, 2, 4])
def test_the_mode_of_a_set_does_not_matter_to_its_gets(mode: int) -> None:
    assert image(shared(setter(3, "a", 1, mode=mode), getter(8, "a"))) == ["1", 0]


@pytest.mark.parametrize("mode", [2, 4])
def test_a_get_that_is_switched_off_gives_nothing(mode: int) -> None:
    assert image(shared(setter(3, "a", 1), getter(8, "a", mode=mode))) is None


@pytest.mark.parametrize(("mode", "expected"), [(0, ["1", 0]), (4, ["1", 0]), (2, None)])
def test_the_output_of_a_set_is_its_input(mode: int, expected: Any) -> None:
    outputs = [{"name": "*", "type": "*"}]
    assert image(shared(setter(8, "a", 1, mode=mode, outputs=outputs))) == expected


def test_the_first_set_of_a_name_counts() -> None:
    assert image(shared(setter(4, "a", 2), setter(3, "a", 1), getter(8, "a"))) == ["2", 0]


def test_names_are_compared_as_they_are() -> None:
    message = refused(shared(setter(3, "Name", 1), setter(4, "name ", 2), getter(8, "name")))
    assert "node 9 (Save Image), input images" in message
    assert "the SetNode 'name' gets, through node 8" in message
    assert "In reach are 'Name', 'name '." in message


def test_families_do_not_see_each_other() -> None:
    message = refused(shared(setter(3, "a", 1), getter(8, "a", "easy getNode")))
    assert "No easy setNode is in reach" in message


@pytest.mark.parametrize("name", ["", None, 5])
def test_a_get_without_a_name_is_refused(name: Any) -> None:
    assert "none of that name" in refused(shared(setter(3, name, 1), getter(8, name)))


def test_a_set_without_an_input_is_named() -> None:
    message = refused(shared(setter(3, "a", None), getter(8, "a")))
    assert "(node 3)" in message
    assert "not connected" in message


def test_a_get_that_nothing_needs_is_no_fault() -> None:
    file = shared(getter(5, "gone"), setter(3, "a", 1), getter(8, "a"), invert(6, None))
    assert image(file) == ["1", 0]


def test_a_set_that_gets_what_it_gives_gives_nothing() -> None:
    file = shared(setter(3, "a", 5), getter(8, "a"))
    file["links"].append([5, 8, 0, 3, 0, "IMAGE"])
    assert image(file) is None


def test_sets_are_found_further_out_and_the_nearest_counts() -> None:
    inner = subgraph(
        "inner",
        [getter(20, "far"), getter(21, "near"), setter(22, "near", 201)],
        [
            (201, -10, 0, 22, 0, "IMAGE"),
            (202, 20, 0, -20, 0, "IMAGE"),
            (203, 21, 0, -20, 1, "IMAGE"),
        ],
        [("in", "IMAGE")],
        [("far", "IMAGE"), ("near", "IMAGE")],
    )
    file = document(
        [
            empty_image(1),
            empty_image(2),
            setter(3, "far", 1),
            setter(4, "near", 1),
            ui(5, "inner", links={"in": 2}),
            save_image(8, 5),
            save_image(9, 6),
        ],
        [
            (1, 1, 0, 3, 0, "IMAGE"),
            (2, 2, 0, 5, 0, "IMAGE"),
            (5, 5, 0, 8, 0, "IMAGE"),
            (6, 5, 1, 9, 0, "IMAGE"),
        ],
        [inner],
    )
    assert image(file, "8") == ["1", 0]
    assert image(file, "9") == ["2", 0]


def test_each_instance_has_its_own_sets() -> None:
    inner = subgraph(
        "inner",
        [setter(20, "a", 201), getter(21, "a")],
        [(201, -10, 0, 20, 0, "IMAGE"), (202, 21, 0, -20, 0, "IMAGE")],
        [("in", "IMAGE")],
        [("out", "IMAGE")],
    )
    file = document(
        [
            empty_image(1),
            empty_image(2),
            ui(3, "inner", links={"in": 1}),
            ui(4, "inner", links={"in": 2}),
            save_image(8, 3),
            save_image(9, 4),
        ],
        [
            (1, 1, 0, 3, 0, "IMAGE"),
            (2, 2, 0, 4, 0, "IMAGE"),
            (3, 3, 0, 8, 0, "IMAGE"),
            (4, 4, 0, 9, 0, "IMAGE"),
        ],
        [inner],
    )
    assert image(file, "8") == ["1", 0]
    assert image(file, "9") == ["2", 0]


def test_a_set_inside_a_subgraph_is_not_seen_outside() -> None:
    inner = subgraph(
        "inner", [setter(20, "a", 201)], [(201, -10, 0, 20, 0, "IMAGE")], [("in", "IMAGE")]
    )
    file = shared(ui(3, "inner", links={"in": 1}), getter(8, "a"))
    file["definitions"] = {"subgraphs": [inner]}
    assert "No SetNode is in reach" in refused(file)


def test_a_widget_can_get_its_value_from_a_get() -> None:
    size = ui(1, "PrimitiveInt", [640, "fixed"])
    wide = empty_image(2, inputs=[{"name": "width", "type": "INT", "link": 2, "widget": {}}])
    wide["inputs"][0]["widget"] = {"name": "width"}
    links = [(1, 1, 0, 3, 0, "INT"), (2, 4, 0, 2, 0, "INT"), (3, 2, 0, 9, 0, "IMAGE")]
    file = document([size, setter(3, "w", 1), getter(4, "w"), wide, save_image(9, 3)], links)
    assert sent(file)["2"]["inputs"]["width"] == ["1", 0]


def test_an_installed_class_beats_a_rule() -> None:
    classes = {"GetNode": made({"name": TEXT}, {}, ["IMAGE"])}
    file = shared(getter(8, "a"))
    assert sent(file, catalog_of(classes))["9"]["inputs"]["images"] == ["8", 0]


LORA_A = {"on": True, "lora": "Turbo\\a.safetensors", "strength": 0.8, "strengthTwo": None}
LORA_B = {"on": False, "lora": "b.safetensors", "strength": 0.25, "strengthTwo": 0.5}
HEADER = {"type": "PowerLoraLoaderHeaderWidget"}


def without_second(lora: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in lora.items() if name != "strengthTwo"}


@pytest.mark.parametrize(
    "stored",
    [
        [None, HEADER, LORA_A, LORA_B, None, ""],
        [{}, HEADER, LORA_A, LORA_B, {}, ""],
        [LORA_A, LORA_B],
    ],
)
def test_power_lora_loader_sends_its_loras_by_number(stored: list[Any]) -> None:
    node = ui(5, "Power Lora Loader (rgthree)", stored)
    assert one(node) == {"lora_1": without_second(LORA_A), "lora_2": without_second(LORA_B)}
    separate = {**node, "properties": {"Show Strengths": "Separate Model & Clip"}}
    assert one(separate) == {"lora_1": {**LORA_A, "strengthTwo": 1}, "lora_2": LORA_B}


def test_power_lora_loader_keeps_its_links() -> None:
    loader = ui(2, "CheckpointLoaderSimple", ["x.safetensors"])
    power = ui(5, "Power Lora Loader (rgthree)", [LORA_A], links={"model": 1, "clip": 2})
    file = document([loader, power], [(1, 2, 0, 5, 0, "MODEL"), (2, 2, 1, 5, 1, "CLIP")])
    inputs = sent(file, catalog())["5"]["inputs"]
    assert (inputs["model"], inputs["clip"]) == (["2", 0], ["2", 1])


def test_power_primitive_sends_its_type_and_value() -> None:
    assert one(ui(1, "Power Primitive (rgthree)", ["INT", 7])) == {"type": "INT", "value": 7}
    assert one(ui(1, "Power Primitive (rgthree)", ["BOOL", True]))["type"] == "BOOLEAN"


def test_power_puter_sends_its_outputs_and_its_code() -> None:
    code = "a + {1|2}"
    for stored in ({"outputs": ["STRING"]}, "STRING"):
        assert one(ui(1, "Power Puter (rgthree)", [stored, code])) == {
            "outputs": {"outputs": ["STRING"]},
            "code": code,
        }
    boolean = one(ui(1, "Power Puter (rgthree)", [{"outputs": ["BOOL", "INT"]}, ""]))
    assert boolean["outputs"] == {"outputs": ["BOOLEAN", "INT"]}


def test_power_prompt_sends_texts_and_nothing_that_depends_on_the_disk() -> None:
    chosen = {"insert_embedding": "CHOOSE", "insert_saved": "CHOOSE"}
    node = ui(1, "Power Prompt (rgthree)", ["a cat", "my_lora"])
    assert one(node) == {"prompt": "a cat", "insert_lora": "CHOOSE", **chosen}
    node = ui(1, "Power Prompt (rgthree)", ["a cat", "CHOOSE", "DISABLE LORAS"])
    assert one(node)["insert_lora"] == "DISABLE LORAS"


def test_sdxl_power_prompt_does_not_send_sizes() -> None:
    node = ui(1, "SDXL Power Prompt - Positive (rgthree)", ["a", "b", "CHOOSE", "x"])
    assert one(node) == {"prompt_g": "a", "prompt_l": "b", "insert_lora": "CHOOSE"}


@pytest.mark.parametrize("special", [-1, -2, -3])
def test_seed_is_drawn_from_the_seed_of_the_run(special: int) -> None:
    node = ui(9, "Seed (rgthree)", [special, "", "", ""])
    assert one(node)["seed"] == special
    drawn = [one(node, seed=seed)["seed"] for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert all(0 <= value <= 2**50 for value in drawn)
    narrow = {**node, "properties": {"randomMin": 10, "randomMax": 12}}
    assert one(narrow, seed=3)["seed"] in (10, 11, 12)


def test_a_seed_that_is_set_stays() -> None:
    assert one(ui(9, "Seed (rgthree)", [77, None, None, None]), seed=1) == {"seed": 77}


def test_any_switch_sends_links_in_the_order_of_the_file() -> None:
    switch = ui(5, "Any Switch (rgthree)", [], links={"any_02": 2, "any_01": 1, "any_03": None})
    nodes = [empty_image(1), empty_image(2), switch, save_image(9, 3)]
    links = [(1, 1, 0, 5, 1, "IMAGE"), (2, 2, 0, 5, 0, "IMAGE"), (3, 5, 0, 9, 0, "IMAGE")]
    inputs = sent(document(nodes, links), catalog())["5"]["inputs"]
    assert list(inputs.items()) == [("any_02", ["2", 0]), ("any_01", ["1", 0])]


def test_a_switch_takes_inputs_that_its_class_does_not_list() -> None:
    switch = ui(5, "ImpactSwitch", [2], links={"input1": 1, "input2": 2, "input3": None})
    nodes = [empty_image(1), empty_image(2), switch, save_image(9, 3)]
    links = [(1, 1, 0, 5, 0, "IMAGE"), (2, 2, 0, 5, 1, "IMAGE"), (3, 5, 0, 9, 0, "IMAGE")]
    inputs = sent(document(nodes, links), catalog())["5"]["inputs"]
    assert inputs == {"select": 2, "input1": ["1", 0], "input2": ["2", 0]}


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("Display Any (rgthree)", ["shown"]),
        ("Image Comparer (rgthree)", [[{"name": "A", "url": "/api/view?filename=x.png"}]]),
        ("ShowText|pysssss", ["", "a city that blends"]),
        ("ShowText|pysssss", [["a", "b"]]),
        ("easy showAnything", [["text"]]),
    ],
)
def test_what_a_node_shows_is_not_sent(kind: str, stored: list[Any]) -> None:
    assert one(ui(6, kind, stored)) == {}


VIDEO = {
    "frame_rate": 24,
    "loop_count": 0,
    "filename_prefix": "Hunyuan",
    "format": "video/h264-mp4",
    "pix_fmt": "yuv420p10le",
    "crf": 12,
    "pingpong": False,
    "save_output": False,
    "videopreview": {"hidden": False, "params": {"filename": "Hunyuan_00138.mp4"}},
}


def test_video_combine_is_read_by_name_with_the_widgets_of_its_format() -> None:
    inputs = one(ui(12, "VHS_VideoCombine", VIDEO))
    expected = {name: VIDEO[name] for name in VIDEO if name != "videopreview"}
    assert inputs == {**expected, "save_metadata": True}
    names = list(inputs)
    assert names[names.index("format") :][:2] == ["format", "pix_fmt"]


def test_video_combine_sends_only_the_widgets_of_its_format() -> None:
    inputs = one(ui(12, "VHS_VideoCombine", {**VIDEO, "format": "image/gif"}))
    assert not inputs.keys() & {"pix_fmt", "crf", "save_metadata"}


def test_a_widget_of_a_video_format_can_be_connected() -> None:
    crf = {"name": "crf", "type": "INT", "link": 1, "widget": {"name": "crf"}}
    nodes = [ui(1, "PrimitiveInt", [20, "fixed"]), ui(12, "VHS_VideoCombine", VIDEO, inputs=[crf])]
    made = sent(document(nodes, [(1, 1, 0, 12, 0, "INT")]), catalog())
    assert made["12"]["inputs"]["crf"] == ["1", 0]


def test_video_combine_reads_old_names_and_old_lists() -> None:
    old = {name: VIDEO[name] for name in VIDEO if name != "save_output"}
    assert one(ui(12, "VHS_VideoCombine", {**old, "save_image": False}))["save_output"] is False
    inputs = one(ui(14, "VHS_VideoCombine", [8, 0, "AnimateDiff", "image/gif", True, False]))
    assert (inputs["pingpong"], inputs["save_output"]) == (True, False)
    too_short = one(ui(14, "VHS_VideoCombine", [30, 5]))
    assert (too_short["frame_rate"], too_short["loop_count"]) == (8, 0)


def test_video_combine_writes_out_the_name_of_its_file() -> None:
    nodes = [ui(12, "VHS_VideoCombine", {**VIDEO, "filename_prefix": "%EmptyImage.width%"})]
    nodes.append(empty_image(1, properties={"Node name for S&R": "EmptyImage"}))
    assert sent(document(nodes), catalog())["12"]["inputs"]["filename_prefix"] == "64"


@pytest.mark.parametrize(
    ("forced", "size"),
    [
        ("Disabled", (0, 0)),
        ("Custom Width", (512, 0)),
        ("Custom Height", (0, 512)),
        ("256x?", (256, 0)),
        ("?x128", (0, 128)),
        (None, (512, 512)),
    ],
)
def test_load_video_understands_the_old_size(forced: Any, size: tuple[int, int]) -> None:
    stored = {"video": "wolf.mp4", "custom_width": 512, "custom_height": 512, "count": 3}
    inputs = one(ui(13, "VHS_LoadVideo", {**stored, "force_size": forced}))
    assert (inputs["custom_width"], inputs["custom_height"]) == size
    assert not inputs.keys() & {"force_size", "count"}


def test_load_video_does_not_take_an_old_button_for_a_number() -> None:
    inputs = one(ui(13, "VHS_LoadVideo", ["spiral.mp4", 24, "Disabled", 90, 0, "video"]))
    assert (inputs["frame_load_cap"], inputs["select_every_nth"]) == (90, 1)


@pytest.mark.parametrize("stored", [None, [], {}])
def test_video_combine_without_values_has_its_defaults(stored: Any) -> None:
    inputs = one(ui(13, "VHS_VideoCombine", stored))
    assert (inputs["format"], inputs["save_output"]) == ("image/gif", True)
    chosen = made({"format": [["video/h264-mp4"], {"formats": {"video/h264-mp4": H264}}]})
    combine = catalog_of({"VHS_VideoCombine": chosen})
    inputs = sent(document([ui(13, "VHS_VideoCombine", stored)]), combine)["13"]["inputs"]
    assert (inputs["pix_fmt"], inputs["crf"], inputs["save_metadata"]) == ("yuv420p", 19, True)


def test_other_nodes_of_video_helper_send_their_lists_by_position() -> None:
    repeat = catalog_of({"VHS_DuplicateImages": made({"multiply_by": ["INT", {"default": 1}]})})
    file = document([ui(13, "VHS_DuplicateImages", [4])])
    assert sent(file, repeat)["13"]["inputs"] == {"multiply_by": 4}


def test_load_images_skips_the_place_of_its_button() -> None:
    inputs = one(ui(13, "VHS_LoadImages", ["pictures", "image", 16, 2, 3]))
    assert inputs == {
        "directory": "pictures",
        "image_load_cap": 16,
        "skip_first_images": 2,
        "select_every_nth": 3,
    }


LORA = {"name": "a", "strength": 0.5, "active": False, "clipStrength": 0.4}
META = {"version": 1, "textWidgetName": "text"}
NAMES = {"__lm_widget_ids": ["__lm_autocomplete_meta_text", "text", "loras"]}


@pytest.mark.parametrize("kind", ["Lora Loader (LoraManager)", "Lora Stacker (LoraManager)"])
@pytest.mark.parametrize(
    ("stored", "properties"),
    [
        ([META, "<lora:a:0.60>", [LORA]], NAMES),
        ([META, "<lora:a:0.60>", {"__value__": [LORA]}], {}),
        (["<lora:a:0.60>", [LORA]], {}),
    ],
)
def test_lora_manager_sends_text_and_loras(
    kind: str, stored: list[Any], properties: dict[str, Any]
) -> None:
    inputs = one(ui(40, kind, stored, properties=properties))
    assert inputs["text"] == "<lora:a:0.60>"
    assert inputs["loras"] == {"__value__": [{**LORA, "expanded": False}]}


def test_lora_manager_holds_to_its_text() -> None:
    stored = ["<lora:a:1> and <lora:b:0.7:0.2>", [LORA, {**LORA, "name": "not in the text"}]]
    loras = one(ui(40, "Lora Stacker (LoraManager)", stored))["loras"]["__value__"]
    assert [(lora["name"], lora["strength"]) for lora in loras] == [("a", 0.5), ("b", 0.7)]
    assert loras[1] == {"name": "b", "active": True, "strength": 0.7, "clipStrength": 0.2}


@pytest.mark.parametrize("strength", ["1.2.3", "-", "9" * 400])
def test_a_strength_that_javascript_cannot_send_is_null(strength: str) -> None:
    [lora] = one(ui(40, "Lora Loader (LoraManager)", [f"<lora:a:{strength}>"]))["loras"][
        "__value__"
    ]
    assert lora == {"name": "a", "active": True, "strength": None, "clipStrength": None}


def test_lora_manager_reads_values_by_name() -> None:
    inputs = one(ui(40, "Lora Stacker (LoraManager)", {"text": "<lora:a:1>", "loras": [LORA]}))
    assert inputs == {"text": "<lora:a:1>", "loras": {"__value__": [LORA]}}


def test_other_nodes_of_lora_manager_send_what_they_hold() -> None:
    config = {"current_index": 2}
    assert one(ui(4, "Lora Cycler (LoraManager)", [config])) == {"cycler_config": config}


@pytest.mark.parametrize("flags", [[True, False], [True, False, True]])
def test_trigger_words_come_after_however_many_switches(flags: list[bool]) -> None:
    words = [{"text": "one", "active": True}, {"text": "two", "active": True, "strength": 1.1}]
    inputs = one(ui(42, "TriggerWord Toggle (LoraManager)", [*flags, words, "one,, two"]))
    assert inputs == {
        "group_mode": True,
        "default_active": False,
        "allow_strength_adjustment": len(flags) > 2,
        "toggle_trigger_words": {"__value__": [words[0], {**words[1], "text": "(two:1.10)"}]},
        "orinalMessage": "one,, two",
    }


def test_sliders_go_by_their_properties() -> None:
    properties = {"value": 2.75, "decimals": 2}
    inputs = one(ui(84, "mxSlider", [20, 20, 0], properties=properties))
    assert inputs == {"Xi": 2, "Xf": 2.75, "isfloatX": 1}
    assert one(ui(84, "mxSlider", [20, 20, 0])) == {"Xi": 20, "Xf": 20, "isfloatX": 0}
    both = {"valueX": 3, "valueY": 4.5, "decimalsX": 0, "decimalsY": 1}
    inputs = one(ui(85, "mxSlider2D", [1, 1, 1, 1, 0, 0], properties=both))
    assert (inputs["Xi"], inputs["isfloatX"], inputs["Yf"], inputs["isfloatY"]) == (3, 0, 4.5, 1)


def test_combos_that_insert_names_are_sent_as_they_come() -> None:
    stored = ["a", "b", "populate", "my.safetensors", "__color__", 5, "fixed"]
    inputs = one(ui(7, "ImpactWildcardEncode", stored))
    constant = {
        "Select to add LoRA": "Select the LoRA to add to the text",
        "Select to add Wildcard": "Select the Wildcard to add to the text",
    }
    assert {name: inputs[name] for name in constant} == constant
    assert (inputs["seed"], inputs["mode"]) == (5, "populate")
    assert one(ui(7, "ToDetailerPipe", ["w", "x.safetensors", "y"])) == {
        "wildcard": "w",
        **constant,
    }


@pytest.mark.parametrize(
    ("kind", "stored", "expected"),
    [
        ("ImpactWildcardEncode", True, "populate"),
        ("ImpactWildcardEncode", False, "fixed"),
        ("ImpactWildcardEncode", "reproduce", "reproduce"),
        ("ImpactWildcardProcessor", "populate", True),
        ("ImpactWildcardProcessor", "fixed", False),
        ("ImpactWildcardProcessor", True, True),
    ],
)
def test_the_mode_of_wildcards_follows_the_class(kind: str, stored: Any, expected: Any) -> None:
    assert one(ui(7, kind, ["a", "b", stored]))["mode"] == expected


def test_prompt_builder_never_sends_its_preset() -> None:
    inputs = one(ui(7, "PromptBuilder //Inspire", ["b", "a preset", "text"]))
    assert inputs == {"category": "b", "preset": "#PRESET", "text": "text"}


def test_conditionings_have_as_many_multipliers_as_there_are() -> None:
    inputs = one(ui(7, "ConcatConditioningsWithMultiplier //Inspire", [1.0, 0.5, 0.25]))
    assert inputs == {"multiplier1": 1.0, "multiplier2": 0.5, "multiplier3": 0.25}


def test_efficient_sampler_has_a_button_in_the_place_of_its_control() -> None:
    inputs = one(ui(89, "KSampler (Efficient)", [863, None, 7, 1.5, "euler", "false"]))
    assert inputs == {
        "seed": 863,
        "steps": 7,
        "cfg": 1.5,
        "sampler_name": "euler",
        "vae_decode": "false",
    }


def test_efficient_sampler_draws_a_seed() -> None:
    node = ui(89, "KSampler (Efficient)", [-1, None, 7, 1.5, "euler", "true"])
    drawn = [one(node)["seed"], one(node, seed=5)["seed"], one(node, seed=6)["seed"]]
    assert len(set(drawn)) == 3
    assert all(0 <= value <= 2**50 for value in drawn)


def test_efficient_sampler_reads_files_that_began_with_its_state() -> None:
    inputs = one(ui(89, "KSampler (Efficient)", ["Sample", 863, None, 7, 1.5, "euler", "auto"]))
    assert (inputs["seed"], inputs["steps"], inputs["vae_decode"]) == (863, 7, "true")


def test_efficient_loader_reads_files_without_its_two_newer_choices() -> None:
    expected = {
        "ckpt_name": "b",
        "positive": "p",
        "negative": "n",
        "token_normalization": "none",
        "weight_interpretation": "comfy",
        "empty_latent_width": 512,
    }
    assert one(ui(8, "Efficient Loader", ["b", "p", "n", 512])) == expected
    new = one(ui(8, "Efficient Loader", ["b", "p", "n", "mean", "A1111", 512]))
    assert new == {**expected, "token_normalization": "mean", "weight_interpretation": "A1111"}


def test_high_res_fix_reads_files_with_five_values() -> None:
    inputs = one(ui(8, "HighRes-Fix Script", ["SD-Latent-Upscaler", 1.5, 12, 0.5, 1]))
    assert (inputs["latent_upscaler"], inputs["upscale_by"]) == ("city96", 1.5)
    assert (inputs["hires_steps"], inputs["denoise"], inputs["iterations"]) == (12, 0.5, 1)
    new = one(ui(8, "HighRes-Fix Script", ["pixel", "(use same)", "nearest", 2.0]))
    assert (new["upscale_type"], new["latent_upscaler"], new["upscale_by"]) == (
        "pixel",
        "nearest",
        2.0,
    )


def test_reroute_primitive_sends_its_value_until_it_is_connected() -> None:
    assert one(ui(5, "ReroutePrimitive|pysssss", ["typed"])) == {"value": "typed"}
    linked = ui(5, "ReroutePrimitive|pysssss", ["typed"], links={"value": 1})
    file = document([empty_image(1), linked], [(1, 1, 0, 5, 0, "IMAGE")])
    assert sent(file, catalog())["5"]["inputs"] == {"value": ["1", 0]}


def test_a_name_stored_with_its_picture_is_a_name() -> None:
    named = {"content": "a.safetensors", "image": "checkpoints/a.png"}
    inputs = one(ui(5, "CheckpointLoader|pysssss", [named, "[none]"]))
    assert inputs["ckpt_name"] == "a.safetensors"


def test_the_file_says_whether_a_type_of_a_pack_is_a_widget() -> None:
    stored = [{"their": "value"}, "text", 3]
    slots = [{"name": "first", "type": "THEIR_TYPE", "link": None, "widget": {"name": "first"}}]
    inputs = one(ui(5, "WithCustom", stored, inputs=slots))
    assert inputs == {"first": stored[0], "second": "text", "third": 3}
    inputs = one(ui(5, "WithCustom", stored[1:], inputs=[{"name": "first", "type": "THEIR_TYPE"}]))
    assert inputs == {"second": "text", "third": 3}


def test_a_widget_type_of_a_pack_that_the_file_calls_a_socket_is_one() -> None:
    slots = [{"name": "cycler_config", "type": "CYCLER_CONFIG", "link": None}]
    assert one(ui(4, "Lora Cycler (LoraManager)", [{"a": 1}], inputs=slots)) == {}


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("MultiPrimitive|pysssss", "no class"),
        ("Constant (mtb)", "switched its class off"),
        ("Dynamic Context (rgthree)", "unreleased"),
        ("Dynamic Context Switch (rgthree)", "unreleased"),
        ("## make-basic_pipe [2c8c61]", "no longer supported"),
    ],
)
def test_what_only_a_front_end_can_know_is_refused_where_it_is_needed(kind: str, word: str) -> None:
    node = ui(8, kind, ["x"], outputs=[{"name": "IMAGE", "type": "IMAGE"}])
    message = refused(shared(node))
    assert message.startswith(f"node 8 ({kind}): ")
    assert word in message
    unneeded = document([empty_image(1), node, save_image(9, 1)], [(1, 1, 0, 9, 0, "IMAGE")])
    assert sent(unneeded, catalog()).keys() == {"1", "9"}


def test_a_repeater_is_sent_only_where_its_front_end_changes_nothing() -> None:
    node = ui(8, "Repeater|pysssss", [3, "single", "reuse"], links={"source": 1})
    file = shared(node)
    file["links"][0] = [1, 1, 0, 8, 0, "IMAGE"]
    assert sent(file, catalog())["8"]["inputs"]["source"] == ["1", 0]
    node["widgets_values"] = [3, "single", "create"]
    assert "copies of other nodes" in refused(file)


@pytest.mark.parametrize("kind", ["PresetText|pysssss", "VHS_SelectLatest"])
def test_what_a_browser_would_write_is_left_as_it_is_stored(kind: str) -> None:
    node = ui(5, kind, ["default negative", "Manage"], outputs=[{"name": "t", "type": "STRING"}])
    prefix = {"name": "filename_prefix", "type": "STRING", "link": 2, "widget": {"name": "f"}}
    save = save_image(9, 1)
    save["inputs"].append(prefix)
    file = document([empty_image(1), node, save], [(1, 1, 0, 9, 0, "IMAGE"), (2, 5, 0, 9, 1, "*")])
    found = convert(file, catalog())
    assert found.workflow.to_json()["9"]["inputs"]["filename_prefix"] == "p"
    assert [kind in note and "keep their values" in note for note in found.notes] == [True]


@pytest.mark.parametrize(
    ("kind", "stored", "word"),
    [
        ("mxStop", [], "interrupts the run"),
        ("GlobalSeed //Inspire", [12, True, "fixed"], "keep their values"),
    ],
)
def test_a_caller_is_told_of_nodes_that_act_on_others(
    kind: str, stored: list[Any], word: str
) -> None:
    [note] = convert(document([ui(29, kind, stored)]), catalog()).notes
    assert "Node 29" in note
    assert word in note
    assert not convert(document([ui(29, kind, stored, mode=2)]), catalog()).notes


def muted(*between: dict[str, Any], switches: Sequence[int] = (2, 3, 4)) -> dict[str, Any]:
    """Muted pictures 2, 3 and 4, each saved by a node with 10 more, and a Random Unmuter."""
    pictures = [empty_image(key, mode=2) for key in (2, 3, 4)]
    savers = [save_image(key + 10, key) for key in (2, 3, 4)]
    unmuter = ui(1, "Random Unmuter (rgthree)", links={f"in {k}": k + 20 for k in switches})
    links = [(key, key, 0, key + 10, 0, "IMAGE") for key in (2, 3, 4)]
    links += [(key + 20, key, 0, 1, place, "*") for place, key in enumerate(switches)]
    return document([*pictures, *savers, unmuter, *between], links)


def test_random_unmuter_switches_one_input_on_and_says_which() -> None:
    chosen = set()
    for seed in range(20):
        found = convert(muted(), catalog(), seed=seed)
        again = convert(muted(), catalog(), seed=seed)
        assert found == again
        [live] = found.workflow.nodes.keys() & {"2", "3", "4"}
        assert f"chose node {live} (EmptyImage) of 3" in found.notes[0]
        chosen.add(live)
    assert chosen == {"2", "3", "4"}


def test_random_unmuter_counts_a_node_once_and_passes_over_links_from_nowhere() -> None:
    file = muted(switches=(2, 2, 3))
    file["nodes"][6]["inputs"].append({"name": "in 9", "type": "*", "link": 99})
    file["links"].append([99, 77, 0, 1, 9, "*"])
    assert "of 2." in convert(file, catalog(), seed=1).notes[0]


def test_random_unmuter_leaves_a_choice_alone() -> None:
    file = muted()
    file["nodes"][1]["mode"] = 0
    found = convert(file, catalog(), seed=1)
    assert found.workflow.nodes.keys() & {"2", "3", "4"} == {"3"}
    assert not found.notes


def test_random_unmuter_looks_through_collectors() -> None:
    collector = ui(5, "Node Collector (rgthree)", links={"a": 22, "b": 23})
    file = muted(collector, switches=(5,))
    file["links"] += [[22, 2, 0, 5, 0, "*"], [23, 3, 0, 5, 1, "*"]]
    live = sent(file, catalog(), seed=1).keys() & {"2", "3", "4"}
    assert len(live) == 1
    assert live < {"2", "3"}


def test_random_unmuter_switches_the_group_of_a_repeater_on() -> None:
    box = {"pos": [10, 50], "size": [100, 100]}
    file = muted(ui(5, "Mute / Bypass Repeater (rgthree)", mode=2, **box), switches=(5,))
    for node in file["nodes"][:2]:
        node.update(box)
    file["nodes"][2] |= {"pos": [500, 50], "size": [100, 100]}
    file["groups"] = [{"title": "Group", "bounding": [0, 0, 200, 200]}]
    assert sent(file, catalog()).keys() & {"2", "3", "4"} == {"2", "3"}


def test_random_unmuter_switches_a_repeater_s_inputs_on() -> None:
    repeater = ui(5, "Mute / Bypass Repeater (rgthree)", mode=2, links={"a": 30})
    file = muted(repeater, switches=(5,))
    file["links"].append([30, 4, 0, 5, 0, "*"])
    assert sent(file, catalog()).keys() & {"2", "3", "4"} == {"4"}


def test_random_unmuter_switches_all_that_is_in_an_instance_on() -> None:
    inner = subgraph(
        "inner", [empty_image(30, mode=2), save_image(31, 301)], [(301, 30, 0, 31, 0, "IMAGE")]
    )
    file = muted(ui(5, "inner", mode=2), switches=(5,))
    file["definitions"] = {"subgraphs": [inner]}
    assert sent(file, catalog())["5:31"]["inputs"]["images"] == ["5:30", 0]
