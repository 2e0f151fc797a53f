"""Setting a workflow's inputs: addresses, values, seeds."""

from typing import Any

import pytest
from graphs import bundled, catalog, node, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.graph import inputs
from comfy_runner.graph.inputs import bind, discover, reseed, seeds
from comfy_runner.graph.values import FileName
from comfy_runner.graph.workflow import Workflow, parse


def bound(document: dict[str, Any], **values: Any) -> inputs.Bound:
    return bind(parse(document), values, catalog())


def value_after(address: str, value: Any, document: dict[str, Any] | None = None) -> Any:
    result = bound(document or bundled("text_to_picture"), **{address: value})
    assert result.problems == ()
    binding = result.bindings[0]
    return result.workflow.nodes[binding.node_id].inputs[binding.input]


def problem_of(address: str, value: Any, document: dict[str, Any] | None = None) -> Any:
    result = bound(document or bundled("text_to_picture"), **{address: value})
    assert result.bindings == ()
    assert len(result.problems) == 1
    assert result.problems[0].input == address
    return result.problems[0]


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("4.text", ("4", "text")),
        ("Positive prompt.text", ("4", "text")),
        ("positive PROMPT.text", ("4", "text")),
        ("KSampler.steps", ("7", "steps")),
        ("ksampler.steps", ("7", "steps")),
        ("steps", ("7", "steps")),
        ("Size.width", ("6", "width")),
    ],
)
def test_an_address_finds_its_input(address: str, place: tuple[str, str]) -> None:
    text = "text" in address
    result = bound(bundled("text_to_picture"), **{address: "a fox" if text else 32})
    assert [(b.node_id, b.input) for b in result.bindings] == [place]


def test_nested_ids_and_dots_in_titles_are_addresses() -> None:
    document = {
        "12:5": node("SaveText", "v1.5 text", text="old", filename_prefix="x", format="txt")
    }
    assert value_after("12:5.text", "new", document) == "new"
    assert value_after("v1.5 text.text", "new", document) == "new"


def test_an_id_goes_before_a_title_and_a_title_before_a_class() -> None:
    document = {
        "1": node("EmptyImage", "2", width=1),
        "2": node("EmptyImage", "ImageBlur", width=2),
        "3": node("ImageBlur", blur_radius=3),
    }
    assert bound(document, **{"2.width": 9}).bindings[0].node_id == "2"
    assert bound(document, **{"ImageBlur.width": 9}).bindings[0].node_id == "2"
    assert bound(document, **{"ImageBlur.blur_radius": 9}).bindings[0].node_id == "3"


@pytest.mark.parametrize(
    ("address", "code", "says"),
    [
        ("CLIPTextEncode.text", "ambiguous_address", "4.text, 5.text"),
        ("text", "ambiguous_address", "Use a node's id: 4.text, 5.text."),
        ("7.stepz", "no_such_input", "It has seed, steps, cfg"),
        ("7.model", "not_settable", "takes a connection"),
        ("Positive promt.text", "no_such_address", "Did you mean 'Positive prompt.text' or"),
        ("nothing.like.it", "no_such_address", "comfy-runner inputs"),
        ("", "no_such_address", "No node"),
    ],
)
def test_an_address_that_means_nothing_is_told_with_a_cure(
    address: str, code: str, says: str
) -> None:
    problem = problem_of(address, "x")
    assert problem.code == code
    assert says in str(problem)


def test_all_problems_come_at_once_and_the_rest_is_set() -> None:
    result = bound(
        bundled("text_to_picture"),
        **{"4.text": "a fox", "7.steps": 0, "7.sampler_name": "eulr", "nope.x": 1},
    )
    assert [b.address for b in result.bindings] == ["4.text"]
    assert {p.input for p in result.problems} == {"7.steps", "7.sampler_name", "nope.x"}


def test_two_addresses_of_one_input_are_refused() -> None:
    result = bound(bundled("text_to_picture"), **{"7.steps": 3, "KSampler.steps": 4})
    assert [p.code for p in result.problems] == ["set_twice"]


def test_a_connected_widget_can_be_set_by_its_full_address_only() -> None:
    document = picture() | {"3": node("PrimitiveInt", value=5)}
    document["1"]["inputs"]["width"] = ["3", 0]
    assert value_after("1.width", 32, document) == 32
    assert problem_of("width", 32, document).code == "no_such_address"


@pytest.mark.parametrize(
    ("address", "given_value", "stored"),
    [
        ("7.steps", 20, 20),
        ("7.steps", "20", 20),
        ("7.steps", 20.0, 20),
        ("7.seed", 2**64 - 1, 2**64 - 1),
        ("7.seed", str(2**64 - 1), 2**64 - 1),
        ("7.cfg", "7.5", 7.5),
        ("7.cfg", 7, 7.0),
        ("4.text", "http://example.com/x.png is a prompt", "http://example.com/x.png is a prompt"),
        ("4.text", "ends in .png", "ends in .png"),
        ("4.text", 12, "12"),
        ("4.text", True, "true"),
        ("7.scheduler", "karras", "karras"),
        ("6.width", 144, 144),
    ],
)
def test_values_are_coerced(address: str, given_value: Any, stored: Any) -> None:
    value = value_after(address, given_value)
    assert value == stored
    assert type(value) is type(stored)


@pytest.mark.parametrize(
    ("address", "given_value", "code", "says"),
    [
        ("7.steps", 20.5, "wrong_type", "20.5 is not a whole number."),
        ("7.steps", True, "wrong_type", "True is not a whole number."),
        ("7.steps", "many", "wrong_type", "'many' is not a"),
        ("7.steps", [1, 2], "wrong_type", "[1, 2] is not a whole number."),
        ("7.steps", 0, "too_small", "It goes from 1 to 10000."),
        ("7.seed", 2**64, "too_big", "above the maximum"),
        ("7.seed", -1, "too_small", "-1 is below the minimum 0."),
        ("7.cfg", "nan", "wrong_type", "'nan' is not a number."),
        ("7.cfg", None, "wrong_type", "None is not a number."),
        ("6.width", 130, "off_step", "The nearest are 128 and 144."),
        ("7.scheduler", "Karras!", "not_in_list", "Did you mean 'karras'?"),
        ("4.text", {"a": 1}, "wrong_type", "is not text."),
        ("1.unet_name", 3, "wrong_type", "not the name of a model"),
        ("1.unet_name", FileName("a.png"), "no_file_input", "It takes a model, not a file."),
        ("7.steps", FileName("a.png"), "no_file_input", "It takes INT, not a file."),
    ],
)
def test_values_that_do_not_fit_are_refused(
    address: str, given_value: Any, code: str, says: str
) -> None:
    problem = problem_of(address, given_value)
    assert problem.code == code
    assert says in str(problem)


@pytest.mark.parametrize(
    ("word", "truth"),
    [(True, True), ("true", True), ("No", False), (1, True), (0, False), (" off ", False)],
)
def test_truth_is_read_as_people_write_it(word: Any, truth: bool) -> None:
    document = {"1": node("PrimitiveBoolean", value=not truth)}
    assert value_after("1.value", word, document) is truth
    assert problem_of("1.value", "maybe", document).code == "wrong_type"


def test_a_list_is_wrapped_so_that_it_is_no_link() -> None:
    document = {"1": node("EmptyImage", "x", width=1, odd="text")}
    workflow = parse(document)
    result = bind(workflow, {"1.odd": ["2", 0]}, catalog())
    # An input that the class does not know is no place to put a value.
    assert [p.code for p in result.problems] == ["no_such_input"]


def test_another_option_of_a_dynamic_combo_brings_its_inputs() -> None:
    document = {
        "1": node(
            "ResizeImageMaskNode", input=["9", 0], resize_type="match size", scale_method="area"
        )
    }
    result = bound(
        document,
        **{"1.resize_type.multiplier": 2, "1.resize_type": "scale by multiplier"},
    )
    assert result.problems == ()
    assert result.workflow.nodes["1"].inputs["resize_type.multiplier"] == 2.0


def test_a_file_input_is_bound_but_not_written() -> None:
    result = bound(bundled("upscale"), image="https://example.com/cat.png")
    assert result.bindings[0].takes_file
    assert result.bindings[0].value == "https://example.com/cat.png"
    assert result.workflow.nodes["1"].inputs["image"] == "astronaut.png"


def test_a_file_input_takes_nothing_but_text() -> None:
    problem = problem_of("image", 5, bundled("upscale"))
    assert (problem.code, problem.what) == ("wrong_type", "5 is neither a file's name nor a URL.")


def test_an_address_is_never_that_of_another_node() -> None:
    document = {
        "1": node("EmptyImage", "2", width=1),
        "2": node("EmptyImage", "Other", width=2),
    }
    found = [s.address for s in discover(parse(document), catalog()) if s.input == "width"]
    assert found == ["1.width", "Other.width"]
    assert bound(document, **{found[0]: 9}).bindings[0].node_id == "1"


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([s.address for s in discover(parse(bundled("text_to_picture")), catalog())]))
def test_every_discovered_address_sets_its_own_input_and_no_other(address: str) -> None:
    workflow = parse(bundled("text_to_picture"))
    settable = next(s for s in discover(workflow, catalog()) if s.address == address)
    result = bind(workflow, {address: settable.value}, catalog())
    if settable.value is not None:
        assert result.problems == ()
        assert [(b.node_id, b.input) for b in result.bindings] == [
            (settable.node_id, settable.input)
        ]
        assert without(result.workflow, settable) == without(workflow, settable)


def without(workflow: Workflow, settable: inputs.Settable) -> dict[str, Any]:
    document = workflow.to_json()
    document[settable.node_id]["inputs"].pop(settable.input, None)
    return document


def test_discovery_tells_type_value_and_range() -> None:
    found = {s.address: s for s in discover(parse(bundled("text_to_picture")), catalog())}
    seed = found["Sampler.seed"]
    assert (seed.kind, seed.value, seed.minimum, seed.maximum) == ("INT", 1, 0, 2**64 - 1)
    assert found["Size.width"].step == 16
    assert found["Diffusion model.unet_name"].kind == "model"
    assert found["Diffusion model.unet_name"].folder == "diffusion_models"
    assert "euler" in (found["Sampler.sampler_name"].choices or ())
    assert found["Text encoder.device"].value == "default"
    assert "Sampler.model" not in found
    image = discover(parse(bundled("upscale")), catalog())[0]
    assert (image.address, image.kind, image.choices) == ("Photo.image", "image", None)
    assert image.as_json()["title"] == "Photo"


TWO_SAMPLERS = {
    "1": node("RandomNoise", noise_seed=10),
    "2": node("RandomNoise", noise_seed=20),
    "3": node("RandomNoise", noise_seed=10),
    "4": node("KSampler", seed=["9", 0]),
    "5": node("PrimitiveInt", value=10),  # has control_after_generate, may be a width
}


def test_one_seed_makes_all_and_equal_ones_stay_equal() -> None:
    workflow = reseed(parse(TWO_SAMPLERS), 7, catalog())
    assert seeds(workflow, catalog()) == {
        ("1", "noise_seed"): 7,
        ("2", "noise_seed"): 8,
        ("3", "noise_seed"): 7,
    }
    assert workflow.nodes["5"].inputs["value"] == 10


def test_seeds_of_the_request_are_kept() -> None:
    workflow = reseed(parse(TWO_SAMPLERS), 7, catalog(), keep=[("1", "noise_seed")])
    assert workflow.nodes["1"].inputs["noise_seed"] == 10
    assert workflow.nodes["2"].inputs["noise_seed"] != 20


def test_no_seed_is_refused_and_one_beyond_an_input_wraps() -> None:
    for seed in (2**64, -1):
        with pytest.raises(InvalidInput, match=r"is no seed: it goes from 0 to"):
            reseed(parse(TWO_SAMPLERS), seed, catalog())
    workflow = reseed(parse(TWO_SAMPLERS), 2**64 - 1, catalog())
    assert workflow.nodes["2"].inputs["noise_seed"] == 0
