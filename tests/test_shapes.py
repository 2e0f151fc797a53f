"""How the editor builds a node of a class: its sockets, its widgets and their places."""

from typing import Any

import pytest
from editor_files import catalog_of, core

from comfy_runner.convert.shapes import (
    LOADER_VIEW,
    MISSING,
    WIDGETS,
    Shape,
    Socket,
    Widget,
    shape,
)
from comfy_runner.graph.nodes import NodeCatalog


def made(
    required: dict[str, Any] | None = None,
    optional: dict[str, Any] | None = None,
    name: str = "Probe",
    **rest: Any,
) -> Shape:
    """The shape of a class with these inputs."""
    info = {"input": {"required": required or {}, "optional": optional or {}}, **rest}
    node_class = NodeCatalog({"object_info": {name: info}}).get(name)
    assert node_class is not None
    return shape(node_class)


def of(class_type: str) -> Shape:
    """The shape of one of ComfyUI's own classes."""
    found = core().derived(shape, class_type)
    assert found is not None
    return found


def names(items: Any) -> list[str]:
    """The name of each."""
    return [item.name for item in items]


CURVE = {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"}
BOX = {"x": 0, "y": 0, "width": 512, "height": 512}
REMOTE = {"remote": {"route": "/files"}}


@pytest.mark.parametrize(
    ("spec", "start", "places"),
    [
        (["INT"], 0, 1),
        (["INT", {"default": 3}], 3, 1),
        (["INT", {"default": None}], 0, 1),
        (["INT", {"control_after_generate": True}], 0, 2),
        (["INT", {"control_after_generate": "increment"}], 0, 2),
        (["INT", {"control_after_generate": False}], 0, 1),
        (["FLOAT"], 0, 1),
        (["FLOAT", {"default": 0.5, "control_after_generate": True}], 0.5, 2),
        (["BOOLEAN"], False, 1),
        (["BOOLEAN", {"default": True}], True, 1),
        (["BOOLEAN", {"control_after_generate": True}], False, 1),
        (["STRING"], "", 1),
        (["STRING", {"default": "x", "control_after_generate": True}], "x", 1),
        (["TEXTAREA", {"default": "x"}], "", 1),
        (["TEXTAREA", {"options": {"default": "x"}}], "x", 1),
        (["MARKDOWN", {"default": "x"}], "", 1),
        (["PAINTER"], "", 1),
        ([["a", "b"]], "a", 1),
        ([["a", "b"], {"default": "b"}], "b", 1),
        (["COMBO", {"options": ["a", "b"]}], "a", 1),
        (["COMBO", {"options": ["a", "b"], "default": ""}], "a", 1),
        (["COMBO", {"options": ["a"], "default": "elsewhere"}], "elsewhere", 1),
        ([[]], MISSING, 1),
        (["COMBO"], MISSING, 1),
        (["COMBO", {"options": ["a"], "control_after_generate": True}], "a", 3),
        (["COMBO", {"options": ["a"], "default": ["a"], "multi_select": True}], [], 1),
        (["COMBO", {"options": ["a"], "multi_select": {"chip": True}}], [], 1),
        (["COMBO", {"options": ["a"], "multi_select": {}}], [], 1),
        (["COMBO", {"multi_select": True, "control_after_generate": True}], [], 2),
        (["COMBO", {"remote": {}}], "Loading...", 2),
        (["COMBO", {**REMOTE, "control_after_generate": True}], "Loading...", 4),
        (["COMBO", REMOTE], "Loading...", 2),
        (["COMBO", {**REMOTE, "options": ["a"]}], "a", 2),
        (["COMBO", {**REMOTE, "default": "x"}], "x", 2),
        (["COMFY_DYNAMICCOMBO_V3", {"options": []}], MISSING, 1),
        (["COLOR"], "#000000", 1),
        (["COLOR", {"default": "#fff"}], "#fff", 1),
        (["BOUNDING_BOX"], BOX, 5),
        (["BOUNDING_BOX", {"default": {"x": 1}}], {"x": 1}, 5),
        (["BOUNDING_BOXES"], [], 1),
        (["COLORS", {"default": ["#fff"]}], ["#fff"], 1),
        (["COLORS"], [], 1),
        (["CURVE"], CURVE, 1),
        (["RANGE"], {"min": 0, "max": 1}, 1),
        (["IMAGECOMPARE", {"default": ["a", "b"]}], ["", ""], 0),
        (["AUDIO_RECORD"], "", 2),
        (["WEBCAM"], "", 1),
        (["PREVIEW_3D"], "", 1),
        (["LOAD_3D_ADVANCED"], LOADER_VIEW, 1),
        (["CHART", {"default": {"a": 1}}], {}, 1),
        (["CHART", {"options": {"data": {"a": 1}}}], {"a": 1}, 1),
        (["GALLERIA"], [], 1),
        (["GALLERIA", {"options": {"images": ["a"]}}], ["a"], 1),
    ],
    ids=repr,
)
def test_a_widget_starts_with_a_value_and_takes_places(spec: Any, start: Any, places: int) -> None:
    [widget] = made({"x": spec}).widgets
    assert (widget.name, widget.default, widget.places, widget.sent) == ("x", start, places, True)
    assert widget.default.__class__ is start.__class__


@pytest.mark.parametrize(("kind", "places"), [("IMAGEUPLOAD", 1), ("AUDIOUPLOAD", 1)])
def test_upload_buttons_take_a_place_and_are_not_sent(kind: str, places: int) -> None:
    assert made({"x": [kind]}).widgets == (Widget("x", kind, MISSING, places, sent=False),)


def test_an_audio_player_takes_no_place_and_is_not_sent() -> None:
    assert made({"x": ["AUDIO_UI"]}).widgets == (Widget("x", "AUDIO_UI", MISSING, 0, sent=False),)


def test_a_combo_that_is_fetched_may_have_a_button_after_it() -> None:
    spec = ["COMBO", {"remote": {"route": "/files", "refresh_button": True}}]
    first, button = made({"x": spec}).widgets
    assert (first.name, first.places) == ("x", 2)
    assert (button.name, button.places, button.sent) == ("refresh", 1, True)
    assert button.default == "refresh"


def test_every_kind_of_widget_can_be_built() -> None:
    spec = {kind: [kind, {"options": []}] for kind in sorted(WIDGETS)}
    assert set(names(made(spec).widgets)) == WIDGETS
    assert made(spec).sockets == ()


@pytest.mark.parametrize(
    ("name", "options", "controlled"),
    [
        ("seed", {}, True),
        ("noise_seed", {}, True),
        ("rand_seed", {}, False),
        ("Seed", {}, False),
        ("seed", {"control_after_generate": False}, False),
        ("seed", {"control_after_generate": None}, True),
        ("steps", {"control_after_generate": True}, True),
        ("steps", {"control_after_generate": "fixed"}, True),
    ],
)
def test_a_seed_is_known_by_its_name_unless_the_class_says_otherwise(
    name: str, options: dict[str, Any], controlled: bool
) -> None:
    [widget] = made({name: ["INT", options]}).widgets
    assert widget.control is controlled
    assert widget.places == 1 + controlled


@pytest.mark.parametrize("kind", ["FLOAT", "STRING", "COMBO"])
def test_only_integers_are_seeds_by_name(kind: str) -> None:
    [widget] = made({"seed": [kind]}).widgets
    assert not widget.control


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (["IMAGE"], "IMAGE"),
        (["INT", {"forceInput": True}], "INT"),
        (["INT", {"forceInput": "yes"}], "INT"),
        ([["a"], {"forceInput": True}], "COMBO"),
        (["INT,FLOAT"], "INT,FLOAT"),
        (["*"], "*"),
        ([0], "*"),
        ([None], "*"),
        ([""], "*"),
        ([], "*"),
        ("odd", "*"),
        (None, "*"),
        (["INT", {"widgetType": "ODD"}], "INT"),
        (["COMFY_DYNAMICSLOT_V3"], "COMFY_DYNAMICSLOT_V3"),
    ],
    ids=repr,
)
def test_what_is_no_widget_is_a_socket(spec: Any, kind: str) -> None:
    built = made({"x": spec})
    assert built.sockets == (Socket("x", kind),)
    assert built.widgets == ()
    assert built.socket_names == {"x"}


@pytest.mark.parametrize(
    "spec",
    [
        ["INT", {"forceInput": False}],
        ["INT", {"forceInput": 0}],
        ["INT", {"socketless": True, "hidden": True, "advanced": True, "lazy": True}],
        ["FILE,STRING", {"widgetType": "STRING"}],
        ["INT", None],
        ["INT", "odd"],
        ["INT", {"defaultInput": True}],
    ],
    ids=repr,
)
def test_what_changes_nothing_leaves_a_widget(spec: Any) -> None:
    built = made({"x": spec})
    assert names(built.widgets) == ["x"]
    assert built.sockets == ()


def test_an_optional_input_that_defaults_to_a_connection_is_a_socket() -> None:
    assert made({}, {"x": ["INT", {"defaultInput": True}]}).sockets == (Socket("x", "INT"),)


def test_inputs_stand_in_the_order_of_the_class_and_those_of_the_editor_last() -> None:
    built = made(
        {"file": [["a"], {"image_upload": True}], "b": ["INT"], "image": ["IMAGE"], "c": ["INT"]},
        {"d": ["INT"], "mask": ["MASK"]},
        input_order={"required": ["c", "gone", "d", "image", "file"], "optional": ["mask", "b"]},
    )
    assert names(built.sockets) == ["image", "mask"]
    assert names(built.widgets) == ["c", "file", "b", "upload", "d"]


def test_an_input_that_is_both_required_and_optional_is_optional() -> None:
    built = made(
        {"a": ["INT"], "d": ["INT", {"default": 2}], "b": ["INT"]},
        {"d": ["STRING"], "c": ["INT"]},
        input_order={"required": ["a", "d", "b"], "optional": ["d", "c"]},
    )
    assert names(built.widgets) == ["a", "b", "d", "c"]
    assert built.widgets[2].type == "STRING"


@pytest.mark.parametrize(
    ("options", "uploads"),
    [
        ({"image_upload": True}, True),
        ({"video_upload": True}, True),
        ({"animated_image_upload": True}, True),
        ({"image_upload": 1}, False),
        ({"file_upload": True}, False),
        ({"audio_upload": True}, False),
    ],
)
def test_a_required_combo_may_bring_an_upload_button(
    options: dict[str, Any], uploads: bool
) -> None:
    assert names(made({"x": [["a"], options]}).widgets) == ["x"] + ["upload"] * uploads
    assert names(made({"x": ["COMBO", options]}).widgets) == ["x"] + ["upload"] * uploads
    assert names(made({"x": ["STRING", options]}).widgets) == ["x"]
    assert names(made({}, {"x": [["a"], options]}).widgets) == ["x"]


@pytest.mark.parametrize(
    ("class_type", "expected"),
    [
        ("LoadImage", ["image", "upload"]),
        ("LoadAudio", ["audio", "audioUI", "upload"]),
        ("SaveAudio", ["filename_prefix", "audioUI"]),
        ("PreviewAudio", ["audioUI"]),
        ("Preview3D", ["model_file", "image"]),
        ("SaveGLB", ["filename_prefix", "image"]),
        ("CustomCombo", ["choice", "index", "option1"]),
        ("KSampler", ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"]),
        ("ImageCompare", ["compare_view"]),
    ],
)
def test_classes_of_comfyui_have_the_widgets_that_the_editor_shows(
    class_type: str, expected: list[str]
) -> None:
    assert names(of(class_type).widgets) == expected


def test_a_3d_loader_has_three_buttons_before_its_view() -> None:
    widgets = of("Load3D").widgets
    at = names(widgets).index("upload 3d model")
    assert names(widgets)[at : at + 3] == ["upload 3d model", "upload extra resources", "clear"]
    assert all(widget.sent and widget.places == 1 for widget in widgets[at : at + 3])
    assert [widget.default for widget in widgets[at : at + 3]] == [
        "upload3dmodel",
        "uploadExtraResources",
        "clear",
    ]


def test_the_advanced_3d_loader_has_no_buttons() -> None:
    assert names(of("Load3DAdvanced").widgets) == [
        "model_file",
        "viewport_state",
        "width",
        "height",
    ]


def growing(**template: Any) -> list[Any]:
    """An autogrow input."""
    return ["COMFY_AUTOGROW_V3", {"template": template}]


ONE = {"required": {"image": ["IMAGE", {"forceInput": True}]}}


@pytest.mark.parametrize(
    ("template", "members", "least"),
    [
        ({"prefix": "i", "min": 2, "max": 4}, ["g.i0", "g.i1", "g.i2", "g.i3"], 3),
        ({"prefix": "i", "max": 2}, ["g.i0", "g.i1"], 2),
        ({"prefix": "i", "min": 0, "max": 3}, ["g.i0", "g.i1", "g.i2"], 1),
        ({"prefix": "i", "min": 9, "max": 1}, ["g.i0"], 1),
        ({"names": ["a", "b", "c"], "min": 1}, ["g.a", "g.b", "g.c"], 2),
    ],
)
def test_a_group_that_grows_knows_every_member(
    template: dict[str, Any], members: list[str], least: int
) -> None:
    [socket] = made({"g": growing(input=ONE, **template)}).sockets
    assert socket.type == "IMAGE"
    assert socket.autogrow is not None
    assert (list(socket.autogrow.names), socket.autogrow.least) == (members, least)


def test_a_group_of_several_inputs_names_its_members_after_them() -> None:
    inputs = {"required": {"image": ["IMAGE"], "mask": ["MASK"]}, "optional": {}}
    first, second = made({"g": growing(input=inputs, prefix="x", min=0, max=2)}).sockets
    assert (first.type, second.type) == ("IMAGE", "MASK")
    assert first.autogrow is not None
    assert second.autogrow is not None
    assert first.autogrow.names == ("g.image0", "g.image1")
    assert second.autogrow.names == ("g.mask0", "g.mask1")


def test_a_group_without_a_limit_has_a_hundred_members_and_never_more_than_a_thousand() -> None:
    for limit, count in (({}, 100), ({"max": 10**9}, 1_000)):
        [socket] = made({"g": growing(input=ONE, prefix="i", **limit)}).sockets
        assert socket.autogrow is not None
        assert len(socket.autogrow.names) == count


@pytest.mark.parametrize("raw", [["COMFY_AUTOGROW_V3"], growing(), growing(input=None)])
def test_a_group_that_tells_no_members_has_none(raw: Any) -> None:
    assert made({"g": raw}).sockets == ()


def test_members_of_a_match_type_know_their_template() -> None:
    template = {"template_id": "T", "allowed_types": "IMAGE,MASK"}
    built = made(
        {"a": ["COMFY_MATCHTYPE_V3", {"template": template}], "b": ["COMFY_MATCHTYPE_V3"]},
        output=["COMFY_MATCHTYPE_V3", "INT"],
        output_matchtypes=["T", None],
    )
    assert built.sockets == (Socket("a", "IMAGE,MASK", match="T"), Socket("b", "*"))
    assert built.output_matches == ("T", "")


def test_a_match_type_of_a_widgets_type_is_a_widget() -> None:
    template = {"template_id": "T", "allowed_types": "INT"}
    [widget] = made({"a": ["COMFY_MATCHTYPE_V3", {"template": template, "default": 4}]}).widgets
    assert (widget.type, widget.default) == ("INT", 4)


def test_each_choice_of_a_dynamic_combo_brings_its_own_inputs() -> None:
    inner = {"key": "deep", "inputs": {"required": {"n": ["INT"]}}}
    options = [
        {"key": "plain", "inputs": {}},
        {
            "key": "rich",
            "inputs": {
                "optional": {"last": ["STRING"]},
                "required": {
                    "seed": ["INT"],
                    "image": ["IMAGE"],
                    "group": growing(input=ONE, prefix="i", max=2),
                    "mode": ["COMFY_DYNAMICCOMBO_V3", {"options": [inner]}],
                },
            },
        },
    ]
    built = made({"x": ["COMFY_DYNAMICCOMBO_V3", {"options": options, "default": "rich"}]})
    [combo] = built.widgets
    assert combo.default == "plain"
    assert combo.children is not None
    assert combo.children["plain"].inputs == ()
    rich = combo.children["rich"]
    assert names(rich.inputs) == ["x.seed", "x.image", "x.group.image", "x.mode", "x.last"]
    assert names(rich.widgets) == ["x.seed", "x.mode", "x.last"]
    assert not rich.widgets[0].control
    [socket] = [item for item in rich.inputs if isinstance(item, Socket) and item.autogrow]
    assert socket.autogrow is not None
    assert socket.autogrow.names == ("x.group.i0", "x.group.i1")
    mode = rich.widgets[1]
    assert mode.children is not None
    assert names(mode.children["deep"].widgets) == ["x.mode.n"]
    assert built.dynamic == ("x.",)


def test_the_first_choice_of_a_dynamic_combo_is_the_least_number_among_them() -> None:
    options = [{"key": key, "inputs": {}} for key in ("all", "10", "2")]
    [combo] = made({"x": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]}).widgets
    assert combo.default == "2"


def test_old_lists_are_known_by_their_length_where_inputs_became_sockets() -> None:
    built = made(
        {"seed": ["INT", {"control_after_generate": True}], "x": ["FLOAT", {"forceInput": True}]},
        {"noise_seed": ["INT"], "image": ["IMAGE"]},
    )
    assert built.legacy == (True, True, False, True)
    assert made({"seed": ["INT"]}).legacy is None


def test_every_class_of_comfyui_has_a_shape() -> None:
    for class_type in core().raw["object_info"]:
        built = of(class_type)
        assert len(built.outputs) == len(built.output_matches)
        assert len(set(names(built.widgets))) == len(built.widgets)


def test_a_class_without_inputs_has_none() -> None:
    catalog = catalog_of({"Bare": {}, "Half": {"input": {"required": None}, "output": ["IMAGE"]}})
    for class_type in ("Bare", "Half"):
        built = catalog.derived(shape, class_type)
        assert built is not None
        assert (built.sockets, built.widgets) == ((), ())
