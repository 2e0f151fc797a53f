"""Judging a graph before ComfyUI sees it."""

from typing import Any

import pytest
from editor_files import with_probes
from graphs import bundled, catalog, node, picture

from comfy_runner.errors import Problem
from comfy_runner.graph.check import check, needed
from comfy_runner.graph.workflow import parse


def problems(document: dict[str, Any]) -> list[Problem]:
    return list(check(parse(document), catalog()))


def only(document: dict[str, Any]) -> Problem:
    found = problems(document)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("name", ["upscale", "text_to_picture"])
def test_bundled_workflows_have_no_problem(name: str) -> None:
    assert problems(bundled(name)) == []


def test_an_unknown_class_is_named_once_with_all_its_nodes() -> None:
    document = picture() | {
        "3": node("SaveImagee", "Other", images=["1", 0]),
        "4": node("SaveImagee", images=["1", 0]),
    }
    problem = only(document)
    assert problem.code == "unknown_class_type"
    assert (problem.node_id, problem.title) == ("3", "Other")
    assert "'SaveImagee'" in problem.what
    assert problem.what.endswith("also needed by node 4.")
    assert "Did you mean 'SaveImage'" in problem.hint


def test_a_link_from_a_node_of_an_unknown_class_is_not_judged_besides() -> None:
    document = picture() | {"1": node("NoSuchClass")}
    problem = only(document)
    assert (problem.code, problem.node_id) == ("unknown_class_type", "1")


def test_nodes_that_no_output_needs_are_not_judged() -> None:
    document = picture() | {
        "3": node("NoSuchClass"),
        "4": node("ImageInvert", image=["3", 0]),
        "5": node("EmptyImage", width=-5),
    }
    assert problems(document) == []
    assert needed(parse(document), catalog()) == {"1", "2"}


def test_an_unknown_class_at_the_end_of_a_chain_counts_as_an_output() -> None:
    problem = only({"1": picture()["1"], "2": node("MySaver", images=["1", 0])})
    assert problem.code == "unknown_class_type"


def test_a_graph_without_an_output_is_refused() -> None:
    assert only({"1": picture()["1"]}).code == "no_outputs"


def test_a_missing_required_input_is_named() -> None:
    document = picture()
    del document["1"]["inputs"]["width"]
    problem = only(document)
    assert (problem.code, problem.where) == (
        "required_input_missing",
        "node 1 (Plain), input width",
    )
    assert "1.width" in problem.hint


def test_links_are_followed_even_under_unknown_names() -> None:
    document = picture(extra=["99", 0])
    document["2"]["inputs"]["images"] = ["1", 3]
    first, second = problems(document)
    assert (first.code, first.input) == ("link_to_nowhere", "extra")
    assert (second.code, second.input) == ("no_such_output", "images")
    assert "has 1 outputs" in second.what


def test_types_of_links_are_compared() -> None:
    document = picture() | {"3": node("VAEDecode", "Dec", samples=["1", 0], vae=["1", 0])}
    document["2"]["inputs"]["images"] = ["3", 0]
    found = problems(document)
    assert {(p.code, p.input) for p in found} == {
        ("type_mismatch", "samples"),
        ("type_mismatch", "vae"),
    }
    assert "takes LATENT, but output 0 of node 1 (Plain) gives IMAGE" in found[0].what


def test_a_cycle_is_told_with_its_way_round() -> None:
    document = picture() | {
        "3": node("ImageInvert", image=["4", 0]),
        "4": node("ImageInvert", image=["3", 0]),
    }
    document["2"]["inputs"]["images"] = ["4", 0]
    problem = only(document)
    assert problem.code == "dependency_cycle"
    assert "4 <- 3 <- 4" in problem.what


def test_a_node_that_feeds_itself_is_a_cycle() -> None:
    document = picture() | {"3": node("ImageInvert", image=["3", 0])}
    document["2"]["inputs"]["images"] = ["3", 0]
    assert "3 <- 3" in only(document).what


def test_a_long_chain_is_walked_without_recursion() -> None:
    document = picture()
    document |= {
        str(n): node("ImageInvert", image=[str(n - 1 if n > 10 else 1), 0]) for n in range(10, 5000)
    }
    document["2"]["inputs"]["images"] = ["4999", 0]
    (problem,) = problems(document)
    assert (problem.code, problem.node_id) == ("too_deep", "2")
    assert "4992 nodes stand in one chain" in problem.what


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"width": 0}, "too_small", "0 is below the minimum 1. It goes from 1 to 16384."),
        ({"width": 99999}, "too_big", "99999 is above the maximum 16384."),
        ({"width": "wide"}, "invalid_value", "'wide' is not a whole number."),
        ({"width": None}, "invalid_value", "None is not a whole number."),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any], code: str, says: str) -> None:
    problem = only(picture(**change))
    assert problem.code == code
    assert str(problem).startswith("node 1 (Plain), input width: ")
    assert says in str(problem)


def test_what_comfyui_coerces_is_let_through() -> None:
    assert problems(picture(width="64", height=48.9)) == []


def test_a_choice_that_is_none_is_refused_with_what_was_meant() -> None:
    document = bundled("text_to_picture")
    document["7"]["inputs"]["sampler_name"] = "eulr"
    problem = only(document)
    assert (problem.code, problem.input) == ("not_in_list", "sampler_name")
    assert "Did you mean 'euler'?" in problem.hint


def test_where_there_is_nothing_to_choose_the_problem_says_so() -> None:
    document = {
        "1": node("ProbeWidgets", empty="x"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    found = [p for p in check(parse(document), with_probes()) if p.input == "empty"]
    assert [(p.code, p.hint) for p in found] == [
        ("not_in_list", "There is nothing to choose from."),
    ]


def test_a_limit_on_one_side_is_told_without_a_range() -> None:
    document = {
        "1": node("EmptyAudio", duration=1.0, sample_rate=48000, channels=1),
        "2": node("TrimAudioDuration", audio=["1", 0], start_index=0.0, duration=-1.0),
        "3": node("PreviewAny", source=["2", 0]),
    }
    problem = only(document)
    assert (problem.what, problem.hint) == ("-1.0 is below the minimum 0.0.", "")


@pytest.mark.parametrize(
    ("class_type", "name", "says"),
    [
        ("LoadImage", "image", "5 is not the name of a file."),
        ("UpscaleModelLoader", "model_name", "5 is not the name of a model."),
    ],
)
def test_a_name_that_is_no_text_is_refused(class_type: str, name: str, says: str) -> None:
    problem = only({"1": node(class_type, **{name: 5}), "2": node("PreviewAny", source=["1", 0])})
    assert (problem.code, problem.input, problem.what) == ("wrong_type", name, says)


def test_inputs_that_a_class_checks_itself_are_left_to_it() -> None:
    document = {
        "1": node("CustomCombo", choice="mine", option1="mine"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    assert [p for p in problems(document) if p.input == "choice"] == []


VIDEO = {
    "1": node("EmptyImage", width=64, height=64, batch_size=4, color=0),
    "2": node("CreateVideo", images=["1", 0], fps=8.0),
    "3": node("SaveVideo", video=["2", 0], filename_prefix="v", format="mp4", codec="h264"),
}


def test_dynamic_inputs_are_expanded_for_the_chosen_option() -> None:
    assert problems(VIDEO) == []
    specs = catalog().get("ResizeImageMaskNode")
    assert specs is not None
    names = specs.inputs({"resize_type": "scale by multiplier"})
    assert "resize_type.multiplier" in names
    assert "resize_type.multiplier" not in specs.inputs({"resize_type": "match size"})


def test_a_wrong_key_of_a_dynamic_combo_is_refused() -> None:
    document = picture() | {
        "3": node(
            "ResizeImageMaskNode", input=["1", 0], resize_type="nonsense", scale_method="area"
        )
    }
    document["2"]["inputs"]["images"] = ["3", 0]
    problem = only(document)
    assert (problem.code, problem.input) == ("not_in_list", "resize_type")


def test_autogrow_slots_are_known_by_their_full_names() -> None:
    document = picture() | {
        "3": node("BatchImagesNode", **{"images.image0": ["1", 0], "images.image1": ["1", 0]})
    }
    document["2"]["inputs"]["images"] = ["3", 0]
    assert problems(document) == []
    del document["3"]["inputs"]["images.image1"]
    assert problems(document) == []
    del document["3"]["inputs"]["images.image0"]
    assert [(p.code, p.input) for p in problems(document)] == [
        ("required_input_missing", "images.image0")
    ]
