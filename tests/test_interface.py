"""Which inputs a model of a workflow gets, what they are called, and what they take."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from editor_files import TEMPLATES, catalog_of
from graphs import HERE, catalog, node
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.convert.editor import Conversion
from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import CallerError, InvalidInput
from comfy_runner.graph.inputs import Exposed
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import parse
from comfy_runner.publishing.candidates import MOST, Candidate, candidates
from comfy_runner.publishing.choosing import design
from comfy_runner.publishing.interface import Interface, Param
from comfy_runner.publishing.naming import COMMON, free, identifier, is_usable
from comfy_runner.publishing.roles import Role

PACK = HERE.parent / "custom_nodes" / "comfy_runner_nodes" / "object_info.json"


@cache
def template(name: str) -> Conversion:
    """One of ComfyUI's own workflows."""
    return read_workflow((TEMPLATES / f"{name}.json").read_bytes(), catalog())


def of(graph: Mapping[str, Any], **more: Any) -> Conversion:
    """A conversion of a graph in API format, with what an editor's file would tell besides."""
    return Conversion(parse(graph), **more)


def sampled(positive: Any, negative: Any, **more: Any) -> dict[str, Any]:
    """A graph with a sampler; `positive` and `negative` are what its prompts are linked to."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "2": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "3": node(
            "KSampler",
            model=["1", 0],
            seed=1,
            steps=20,
            cfg=8.0,
            sampler_name="euler",
            scheduler="normal",
            positive=positive,
            negative=negative,
            latent_image=["2", 0],
            denoise=1.0,
        ),
        "4": node("VAEDecode", samples=["3", 0], vae=["1", 2]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="x"),
        **more,
    }


def text(words: str, title: str = "") -> dict[str, Any]:
    return node("CLIPTextEncode", title, text=words, clip=["1", 1])


def defaults(conversion: Conversion, known: NodeCatalog | None = None) -> list[Candidate]:
    return [one for one in candidates(conversion, known or catalog()) if one.is_default]


def names(conversion: Conversion) -> list[str]:
    return [one.name for one in defaults(conversion)]


def by_name(interface: Interface) -> dict[str, Param]:
    return {param.name: param for param in interface.params}


# The default choice


def test_of_a_plain_workflow_it_is_what_a_person_would_choose() -> None:
    graph = sampled(["6", 0], ["7", 0], **{"6": text("a fox"), "7": text("blurry")})
    interface = design(of(graph), catalog())
    assert [(p.name, p.targets, p.kind, p.default) for p in interface.params] == [
        ("prompt", ("6.text",), "str", "a fox"),
        ("negative_prompt", ("7.text",), "str", "blurry"),
        ("width", ("2.width",), "int", 512),
        ("height", ("2.height",), "int", 512),
        ("batch_size", ("2.batch_size",), "int", 1),
        ("steps", ("3.steps",), "int", 20),
        ("cfg", ("3.cfg",), "float", 8.0),
    ]
    assert (interface.seed, interface.pictures, interface.outputs) == (True, True, ())
    assert interface.notes == ()


def test_the_rest_is_there_to_be_chosen_after_it() -> None:
    found = candidates(of(sampled(["6", 0], ["6", 0], **{"6": text("a")})), catalog())
    flags = [one.is_default for one in found]
    assert flags == sorted(flags, reverse=True)
    others = {one.name: one.role for one in found if not one.is_default}
    assert others["ckpt_name"] is Role.MODEL
    assert others["seed_2"] is Role.SEED
    assert others["filename_prefix"] is Role.MACHINE
    assert others["denoise"] is Role.OTHER


def test_a_denoise_below_1_counts() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["3"]["inputs"]["denoise"] = 0.6
    assert names(of(graph))[-1] == "denoise"


def test_the_choice_of_its_app_goes_before_all() -> None:
    assert names(template("template_qwen_image_illustration_lora")) == [
        *("prompt", "width", "height", "lora_strength", "steps")
    ]
    assert names(template("template_product_placement")) == [
        *("prompt", "product_1", "product_2", "product_3", "composition")
    ]


def test_an_app_decides_on_models_too_but_not_on_seeds() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    app = (
        Exposed("Number", (("3", "seed"),)),
        Exposed("Base Model", (("1", "ckpt_name"),)),
        Exposed("Größe (px)", (("2", "width"), ("2", "height"))),
    )
    found = defaults(of(graph, exposed=app, outputs=("5",)))
    assert [one.name for one in found] == ["base_model", "groe_px"]
    assert found[1].targets == (("2", "width"), ("2", "height"))


def test_what_a_subgraph_shows_is_chosen_and_what_it_hides_is_not() -> None:
    conversion = template("flux_dev_full_text_to_image")
    assert {entry.name for entry in conversion.promoted} > {"width", "height", "unet_name"}
    assert names(conversion) == ["prompt", "width", "height"]


def test_fronts_of_several_subgraphs_that_show_the_same_are_one_input() -> None:
    found = {one.name: one for one in defaults(template("templates-6-key-frames"))}
    assert len(found["width"].targets) == 5
    assert len(found["prompt"].targets) == 1


def test_one_text_for_two_encoders_is_one_prompt() -> None:
    both = {"6": text("a fox"), "8": text("a fox"), "9": node("ConditioningConcat")}
    both["9"]["inputs"] = {"conditioning_to": ["6", 0], "conditioning_from": ["8", 0]}
    found = defaults(of(sampled(["9", 0], ["7", 0], **both, **{"7": text("")})))
    assert found[0].targets == (("6", "text"), ("8", "text"))
    assert found[1].name == "negative_prompt"


def test_a_prompt_that_is_only_zeroed_for_the_negative_side_is_the_prompt() -> None:
    zeroed = {"6": text("a fox"), "7": node("ConditioningZeroOut", conditioning=["6", 0])}
    assert names(of(sampled(["6", 0], ["7", 0], **zeroed)))[:2] == ["prompt", "width"]


def test_a_node_with_both_sides_keeps_them_apart() -> None:
    control = {
        "6": text("a fox"),
        "7": text("blurry"),
        "8": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0]),
    }
    found = defaults(of(sampled(["8", 0], ["8", 1], **control)))
    assert [(one.name, one.value) for one in found[:2]] == [
        ("prompt", "a fox"),
        ("negative_prompt", "blurry"),
    ]


def test_a_titled_primitive_is_an_input_under_its_title() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["8"] = node("PrimitiveInt", "How many", value=3)
    graph["2"]["inputs"]["batch_size"] = ["8", 0]
    graph["9"] = node("PrimitiveInt", value=512)
    graph["2"]["inputs"]["width"] = ["9", 0]
    found = {one.name: one.role for one in defaults(of(graph))}
    assert found["how_many"] is Role.SIZE
    assert found["width"] is Role.SIZE


def test_a_primitive_that_holds_a_seed_is_none() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a"), "8": node("PrimitiveInt", "N", value=3)})
    graph["3"]["inputs"]["seed"] = ["8", 0]
    assert "n" not in names(of(graph))
    assert not design(of(graph), catalog()).seed


def test_a_seed_that_stays_the_same_is_noted() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a"), "7": node("PrimitiveInt", value=7)})
    graph["3"]["inputs"]["seed"] = ["7", 0]
    made = design(of(graph), catalog())
    assert not made.seed
    assert [note for note in made.notes if "7.value" in note]
    for settled in ({"chosen": {"noise": "7.value"}}, {"fixed": {"7.value": 1}}):
        assert not design(of(graph), catalog(), **settled).notes  # type: ignore[arg-type]


def test_a_chosen_seed_that_no_default_can_be_is_random_when_it_is_blank() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["3"]["inputs"]["seed"] = 2**64 - 1
    (noise,) = design(of(graph), catalog(), chosen={"noise": "3.seed"}).params
    assert noise.blank
    assert noise.description.endswith("Blank for a random one.")


def test_files_are_called_after_what_they_are_for() -> None:
    assert names(template("api_kling_v3_flf2v"))[1:3] == ["first_frame", "end_frame"]
    graph = {
        "1": node("LoadImage", "Load Image: Start image", image="a.png"),
        "2": node("LoadImage", image="b.png"),
        "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
        "4": node("LoadImage", image="c.png"),
        "5": node("LoadImage", image="d.png"),
        "6": node("ImageStitch", image1=["4", 0], image2=["5", 0]),
        "7": node("SaveImage", images=["3", 0]),
        "8": node("SaveImage", images=["6", 0]),
    }
    assert names(of(graph)) == ["start_image", "image2", "image1", "image3"]


def test_the_only_file_has_no_number() -> None:
    assert names(template("api_bfl_flux_1_kontext_pro_image"))[:2] == ["prompt", "image"]


def test_what_a_label_alone_does_not_tell_apart_its_title_does() -> None:
    assert names(template("templates-subject_holding_product.app")) == [
        *("image", "product_image", "resolution")
    ]


def test_a_label_that_says_nothing_is_told_with_its_subgraph() -> None:
    assert names(template("basic_image_color_adjustment"))[:4] == [
        *("image", "glow_value", "glow_value_1", "glow_value_2")
    ]


def test_what_is_left_out_of_many_inputs_is_noted() -> None:
    (note,) = design(template("basic_image_color_adjustment"), catalog()).notes
    assert f"more than the {MOST} inputs" in note
    assert "preserve_luminosity" in note


def test_that_nothing_suits_is_noted_with_what_could_be_chosen() -> None:
    conversion = template("basic_mask_operations_and_compositing")
    made = design(conversion, catalog())
    assert made.params == ()
    (note,) = made.notes
    assert "--input image=374.image" in note
    assert design(conversion, catalog(), chosen={"image": "374.image"}).notes == ()


def test_what_does_not_run_has_no_inputs() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a"), "9": node("LoadImage", image="x.png")})
    assert "image" not in names(of(graph))


def test_samplers_that_share_their_steps_are_not_set_apart() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["3"]["class_type"] = "KSamplerAdvanced"
    graph["3"]["inputs"] |= {"noise_seed": 1, "start_at_step": 0, "end_at_step": 10}
    assert "steps" not in names(of(graph))
    graph["3"]["inputs"]["end_at_step"] = 10000
    assert "steps" in names(of(graph))


NAMES = sorted(path.stem for path in TEMPLATES.glob("*.json"))


def test_every_template_gets_few_inputs_under_good_names() -> None:
    counts = []
    for name in NAMES:
        try:
            conversion = template(name)
        except CallerError:
            continue  # of a class that is not installed
        found = candidates(conversion, catalog())
        assert len({one.name for one in found}) == len(found)
        assert all(is_usable(one.name) for one in found)
        chosen = [one for one in found if one.is_default]
        assert not [one.name for one in chosen if one.role in (Role.SEED, Role.MACHINE)]
        if not conversion.exposed:
            assert len(chosen) <= MOST
            assert not [one.name for one in chosen if one.role is Role.MODEL]
        counts.append(len(chosen))
    assert len(counts) > 400
    assert sorted(counts)[len(counts) // 2] in range(2, 6)


def test_inputs_that_nodes_of_our_pack_declare_are_as_they_say() -> None:
    known = catalog_of(json.loads(PACK.read_text()))
    graph = {
        "1": node("ComfyRunnerText", name="Wish", value="a fox", description="What to draw."),
        "2": node("ComfyRunnerInteger", name="count", value=3, minimum=1, maximum=9, step=1),
        "3": node("ComfyRunnerChoice", name="style", value="oil", choices="oil\nink"),
        "4": node("ComfyRunnerImage", name="photo", image="a.png"),
        "5": node("ComfyRunnerResult", name="picture", images=["4", 0]),
        "6": node("SaveImage", images=["7", 0]),
        "7": node("EmptyImage", width=["2", 0], height=64, batch_size=1, color=0),
    }
    conversion = read_workflow(graph, known)
    found = by_name(design(replace(conversion, outputs=("5", "6")), known))
    assert list(found) == ["count", "photo"]
    assert (found["count"].minimum, found["count"].maximum, found["count"].default) == (1, 9, 3)
    assert (found["photo"].kind, found["photo"].accept) == ("Path", "image/*")
    chosen_too = design(conversion, known, chosen={"wish": "1.value", "style": "3.value"})
    assert by_name(chosen_too)["wish"].description == "What to draw."
    assert by_name(chosen_too)["style"].choices == ("oil", "ink")


# What an input takes


def widget(kind: Any, value: Any, **options: Any) -> Param:
    """The input for one widget of a class of its own."""
    known = catalog_of(
        {
            "Odd": {
                "input": {"required": {"thing": [kind, options]}},
                "output": [],
                "output_node": True,
                "display_name": "Odd node",
            }
        }
    )
    graph = {"1": node("Odd", "My node", thing=value)}
    (param,) = design(of(graph), known, chosen={"it": "1.thing"}).params
    return param


@pytest.mark.parametrize(
    ("options", "value", "limits"),
    [
        ({"min": 1, "max": 100}, 20, (1, 100)),
        ({}, 20, (None, None)),
        ({"min": 0, "max": 2**64 - 1}, 20, (0, None)),
        ({"min": -(2**63) + 1, "max": 2**63 - 1}, 20, (None, None)),
    ],
)
def test_limits_are_those_of_the_node_as_far_as_cog_can_hold_them(
    options: Mapping[str, Any], value: int, limits: tuple[Any, Any]
) -> None:
    made = widget("INT", value, **options)
    assert (made.kind, made.default, (made.minimum, made.maximum)) == ("int", value, limits)


def test_a_float_may_be_written_as_a_whole_number() -> None:
    made = widget("FLOAT", 8, min=0.0, max=100.0)
    assert (made.kind, made.default, made.minimum, made.maximum) == ("float", 8.0, 0.0, 100.0)
    assert isinstance(made.default, float)


@pytest.mark.parametrize(
    ("kind", "value", "options"),
    [
        ("INT", 20, {"max": 10}),
        ("INT", 500, {"min": 16, "step": 16}),
        ("INT", "many", {}),
        ("INT", 2**70, {}),
        ("BOOLEAN", "maybe", {}),
        ("STRING", 5, {}),
        ("STRING", "a\rb", {}),
        (["a", "b"], "c", {}),
    ],
)
def test_a_value_that_no_caller_could_give_is_left_to_the_workflow(
    kind: Any, value: Any, options: Mapping[str, Any]
) -> None:
    made = widget(kind, value, **options)
    assert made.blank
    assert made.default is None
    assert made.description.endswith("Blank for the workflow's own.")
    assert made.maximum == options.get("max")


@pytest.mark.parametrize(
    ("listed", "value", "kind", "choices"),
    [
        (["a", "b"], "a", "str", ("a", "b")),
        ([1, 2], 2, "int", (1, 2)),
        ([1, 2.5], 1, "float", (1.0, 2.5)),
        (["auto", 2], 2, "str", ("auto", "2")),
        ([True, False], True, "str", ("True", "False")),
    ],
)
def test_choices_are_of_one_type(
    listed: list[Any], value: Any, kind: str, choices: tuple[Any, ...]
) -> None:
    made = widget(listed, value)
    assert (made.kind, made.choices, made.blank) == (kind, choices, False)
    assert made.default in choices


def test_a_held_value_has_the_limits_of_what_it_goes_to() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a"), "8": node("PrimitiveInt", value=512)})
    graph["2"]["inputs"]["width"] = ["8", 0]
    made = by_name(design(of(graph), catalog()))["width"]
    assert (made.minimum, made.maximum) == (16, 16384)
    graph["8"]["inputs"]["value"] = 8
    made = by_name(design(of(graph), catalog()))["width"]
    assert (made.default, made.minimum, made.maximum) == (8, None, 16384)


def test_of_many_choices_it_is_told_where_they_are_from() -> None:
    listed = [f"style {number}" for number in range(100)]
    made = widget(listed, "style 7")
    assert (made.kind, made.choices, made.default) == ("str", None, "style 7")
    assert "One of the 100 choices" in made.description


def test_a_grid_is_told() -> None:
    assert "In steps of 16 from 16." in widget("INT", 512, min=16, step=16).description


def test_a_tooltip_describes_its_input() -> None:
    assert widget("INT", 1, tooltip="How many\n foxes").description == "How many foxes."
    assert widget("INT", 1).description == "It: thing of node 1 (My node)."
    held = {"1": node("PrimitiveInt", "Int (How many)", value=3), "2": node("PreviewAny")}
    held["2"]["inputs"]["source"] = ["1", 0]
    (made,) = design(of(held), catalog()).params
    assert (made.name, made.description) == ("how_many", "How many.")


def test_a_curve_cannot_be_an_input() -> None:
    conversion = template("basic_image_color_adjustment")
    curve = next(
        one.address for one in candidates(conversion, catalog()) if one.settable.kind == "CURVE"
    )
    with pytest.raises(InvalidInput, match="CURVE that no input of a model can set"):
        design(conversion, catalog(), chosen={"it": curve})


def test_of_a_picture_whose_mask_is_used_it_is_told_what_that_is() -> None:
    said = {
        one.name: one.description
        for one in design(template("flux_fill_inpaint_example"), catalog()).params
    }
    assert said["image"].endswith("loads. What is transparent in it is the mask.")
    plain = design(template("image_qwen_image_edit_2509"), catalog()).params
    assert not [one.name for one in plain if "mask" in one.description]


def test_a_file_is_needed_unless_the_project_has_it() -> None:
    graph = {"1": node("LoadImage", image="fox.png"), "2": node("SaveImage", images=["1", 0])}
    made = by_name(design(of(graph), catalog()))["image"]
    assert (made.kind, made.required, made.accept) == ("Path", True, "image/*")
    made = by_name(design(of(graph), catalog(), present={"fox.png"}))["image"]
    assert (made.required, made.blank, made.default) == (False, True, None)
    assert made.description == (
        "The picture that node 1 (LoadImage) loads. Blank for the workflow's own."
    )


# What the author chooses


def chosen(graph: Mapping[str, Any] | None = None, **wanted: Any) -> Interface:
    """The interface of a choice; by default of the graph with two prompts."""
    plain = sampled(["6", 0], ["7", 0], **{"6": text("a fox", "Wanted"), "7": text("blurry")})
    return design(of(graph or plain), catalog(), **wanted)


def faults(graph: Mapping[str, Any] | None = None, **wanted: Any) -> list[tuple[str, str]]:
    """Code and place of everything that is wrong with a choice."""
    with pytest.raises(InvalidInput) as caught:
        chosen(graph, **wanted)
    return [(problem.code, problem.input) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "address", ["6.text", "Wanted.text", "wanted.TEXT", "prompt", "Prompt", "KSampler.cfg", "cfg"]
)
def test_an_address_is_an_id_a_name_a_title_a_class_or_an_input(address: str) -> None:
    (param,) = chosen(chosen={"it": address}).params
    assert param.targets == (("3.cfg",) if "cfg" in address else ("6.text",))


def test_the_author_decides_on_names_and_their_order() -> None:
    made = chosen(chosen={"model": "1.ckpt_name", "words": "6.text", "noise": "3.seed"})
    assert [param.name for param in made.params] == ["model", "words", "noise"]
    assert not made.seed
    assert by_name(made)["noise"].maximum is None
    assert by_name(made)["model"].description.endswith("A name in checkpoints, or an address.")


def test_one_of_several_places_can_be_chosen_by_itself() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["8"] = node("EmptyLatentImage", width=512, height=64, batch_size=1)
    graph["9"] = node("SaveLatent", samples=["8", 0])
    (both,) = chosen(graph, chosen={"w": "width"}).params
    assert both.targets == ("2.width", "8.width")
    one, other = chosen(graph, chosen={"w": "2.width", "w2": "8.width"}).params
    assert (one.targets, other.targets) == (("2.width",), ("8.width",))
    (left,) = chosen(graph, chosen={"w": "2.width"}, fixed={"8.width": 64}).params
    assert left.targets == ("2.width",)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"chosen": {"x": "6.txt"}}, [("no_such_address", "x")]),
        ({"chosen": {"x": "text"}}, [("ambiguous_address", "x")]),
        ({"chosen": {"x": "3.positive"}}, [("no_such_address", "x")]),
        ({"chosen": {"class": "6.text"}}, [("bad_name", "class")]),
        ({"chosen": {"A b": "6.text"}}, [("bad_name", "A b")]),
        ({"chosen": {"seed": "3.seed"}}, [("bad_name", "seed")]),
        ({"chosen": {"a": "6.text", "b": "Wanted.text"}}, [("set_twice", "b")]),
        ({"chosen": {"a": "6.text"}, "fixed": {"6.text": "x"}}, [("chosen_and_fixed", "a")]),
        ({"fixed": {"3.steps": "many"}}, [("wrong_type", "3.steps")]),
        ({"fixed": {"3.stepz": 1}}, [("no_such_input", "3.stepz")]),
        ({"outputs": ["Result"]}, [("no_such_output", "output")]),
        ({"outputs": ["4"]}, [("no_such_output", "output")]),
        ({"choices": {"nobody": "folder:loras"}}, [("no_such_name", "nobody")]),
        ({"choices": {"prompt": "loras"}}, [("bad_source", "prompt")]),
        ({"choices": {"prompt": "folder:loras"}}, [("no_choices", "prompt")]),
        (
            {"chosen": {"x": "9.a", "1x": "6.text"}, "outputs": ["z"]},
            [("no_such_output", "output"), ("no_such_address", "x"), ("bad_name", "1x")],
        ),
    ],
)
def test_everything_that_is_wrong_with_a_choice_is_told_at_once(
    wanted: Mapping[str, Any], found: list[tuple[str, str]]
) -> None:
    assert faults(**wanted) == found


def test_a_wrong_choice_comes_with_its_cure() -> None:
    with pytest.raises(InvalidInput) as caught:
        chosen(chosen={"a": "6.txt", "b": "3.positive", "def": "6.text"})
    hints = [problem.hint for problem in caught.value.problems]
    assert hints[0].startswith("Did you mean '6.text'")
    assert hints[1] == "Choose 6.text."
    assert hints[2] == "Call it, for example, def_input."


def test_what_is_fixed_is_no_input_and_is_checked_like_one() -> None:
    made = chosen(fixed={"KSampler.steps": "4", "denoise": 0.5})
    assert made.fixed == {"3.steps": 4, "3.denoise": 0.5}
    assert "steps" not in by_name(made)


def test_a_fixed_choice_brings_its_own_inputs() -> None:
    graph = {
        "1": node("LoadImage", image="x.png"),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale dimensions",
            scale_method="area",
        ),
        "3": node("SaveImage", images=["2", 0]),
    }
    spec = catalog().get("ResizeImageMaskNode")
    assert spec is not None
    key = "scale by multiplier"
    assert key in (spec.inputs({})["resize_type"].choices or ())
    made = chosen(graph, chosen={"factor": "2.resize_type.multiplier"}, fixed={"resize_type": key})
    assert [param.kind for param in made.params] == ["float"]


def test_a_fixed_file_must_be_there() -> None:
    graph = {"1": node("LoadImage", image="a.png"), "2": node("SaveImage", images=["1", 0])}
    assert faults(graph, fixed={"1.image": "b.png"}) == [("file_not_given", "1.image")]
    assert chosen(graph, fixed={"1.image": "b.png"}, present={"b.png"}).fixed == {
        "1.image": "b.png"
    }


def test_a_file_that_nobody_gives_is_noted() -> None:
    graph = {
        "1": node("LoadImage", image="a.png"),
        "2": node("ImageScaleBy", image=["1", 0], upscale_method="area", scale_by=2.0),
        "3": node("SaveImage", images=["2", 0]),
    }
    (note,) = chosen(graph, chosen={"factor": "2.scale_by"}).notes
    assert note.startswith("Node 1 (LoadImage) reads the file 'a.png', which is no input")


def test_choices_come_from_a_list_of_names() -> None:
    asked: list[str] = []

    def lists(source: str) -> Sequence[str]:
        asked.append(source)
        return ["m.safetensors", "old/n.safetensors"]

    wanted = {"chosen": {"base": "1.ckpt_name"}, "choices": {"base": "folder:checkpoints"}}
    (made,) = chosen(**wanted, lists=lists).params
    assert asked == ["folder:checkpoints"]
    assert made.choices == ("m.safetensors", "old/n.safetensors")
    assert (made.default, made.choices_from) == ("m.safetensors", "folder:checkpoints")
    (made,) = chosen(**wanted, lists=lambda _: ["other.safetensors"]).params
    assert (made.blank, made.choices) == (True, ("other.safetensors",))


# Outputs


def test_outputs_are_chosen_by_id_or_title() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["8"] = node("SaveLatent", "Noise", samples=["3", 0])
    assert chosen(graph, outputs=["noise"]).outputs == ("8",)
    assert not chosen(graph, outputs=["8"]).pictures
    assert chosen(graph, outputs=["5", "8"]).pictures
    assert chosen(graph).outputs == ()


def test_what_is_only_shown_is_no_result() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["8"] = node("PreviewImage", "Look", images=["4", 0])
    made = chosen(graph)
    assert made.outputs == ("5",)
    assert made.notes == ("What is only shown is no result of the model: node 8 (Look).",)
    del graph["5"]
    assert chosen(graph).outputs == ()


def test_inputs_are_those_of_what_the_outputs_need() -> None:
    graph = sampled(["6", 0], ["6", 0], **{"6": text("a")})
    graph["8"] = node("LoadImage", image="a.png")
    graph["9"] = node("SaveImage", "Copy", images=["8", 0])
    made = chosen(graph, outputs=["Copy"])
    assert list(by_name(made)) == ["image"]
    assert not made.seed


# Names


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Prompt", "prompt"),
        ("aspect_ratio:", "aspect_ratio"),
        ("Load Image (as Mask)", "load_image_as_mask"),
        ("Ignore First Frame\uff1f", "ignore_first_frame"),
        ("noiseSeed", "noise_seed"),
        ("Größe", "groe"),
        ("2nd image", "n2nd_image"),
        ("提示词", ""),
        ("12", ""),
        ("user's text", "users_text"),
        ("w" * 60, "w" * 40),
    ],
)
def test_labels_become_identifiers(label: str, name: str) -> None:
    assert identifier(label) == name


@given(st.text(), st.text(), st.sets(st.text(alphabet="ab_2", max_size=3)))
def test_any_label_gets_a_name_that_is_free(label: str, prefix: str, taken: set[str]) -> None:
    name = free(identifier(label), identifier(prefix), taken)
    assert is_usable(name)
    assert name not in taken


@pytest.mark.parametrize("name", [*COMMON, "self", "class", "match", "input", "values", "path"])
def test_what_a_predictor_needs_itself_is_no_name(name: str) -> None:
    assert not is_usable(name)
    assert is_usable(free(name, "", ()))


def test_a_name_that_python_has_itself_gets_no_number() -> None:
    assert free("object", "", ()) == "object_input"
    assert free("object", "", {"object_input"}) == "object_input_2"
    assert free("object", "segment", ()) == "segment_object"
    assert free("seed", "", ()) == "seed_2"
    assert names(template("image_lotus_depth_v1_1"))[0] == "image"


def test_a_record_of_the_default_choice_is_the_default_choice() -> None:
    conversion = template("video_wan2_2_14B_s2v")
    found = defaults(conversion)
    again = design(conversion, catalog(), chosen={one.name: one.address for one in found})
    assert again == design(conversion, catalog())
