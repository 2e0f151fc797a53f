"""The generated predict.py: what Cog reads off it, and what ruff says to it."""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from editor_files import TEMPLATES
from graphs import HERE, catalog
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import CallerError, InvalidInput
from comfy_runner.publishing.choosing import design
from comfy_runner.publishing.interface import Interface, Param
from comfy_runner.publishing.literals import settled, signature_text, written
from comfy_runner.publishing.marks import skeleton
from comfy_runner.publishing.naming import is_usable
from comfy_runner.publishing.predictor import predictor, refresh_choices
from comfy_runner.serving import schema

RUFF = Path(sys.executable).with_name("ruff")

AUTHORS_OWN = "RUF001,RUF002,W291,W293"
"""What is not held against predict.py: letters and spaces in the texts of the workflow's author."""

EXPECTED = '''\
"""fox-model: a Cog model of the ComfyUI workflow in workflows/workflow.json."""

from typing import Iterator

from cog import BaseRunner, Input, Path, Secret, streaming

from comfy_runner.serving.model import Model

# begin: yours
# end: yours

# choices from folder:loras, written anew by comfy-runner schema
LORA_CHOICES = ["fox.safetensors", "old/hen.safetensors"]


class Predictor(BaseRunner):
    def setup(self, weights: str | None = None) -> None:
        """Boot ComfyUI and fetch what the workflow needs."""
        self.model = Model("workflows/workflow.json", outputs=["9"], fetch=False, weights=weights)
        # begin: yours
        # end: yours

    def healthcheck(self) -> bool:
        """Whether predictions can be taken."""
        return self.model.is_healthy()

    @streaming
    def run(
        self,
        prompt: str = Input(description="What to draw.", default='a "fox"'),
        image: Path = Input(description="What to start from.", accept="image/*"),
        mask: Path | None = Input(description="What to keep.", default=None, accept="image/*"),
        steps: int = Input(description="Number of sampling steps.", default=20, ge=1, le=10000),
        cfg: float = Input(description="Guidance.", default=1.0, ge=0.0, le=100.0),
        sampler: str = Input(description="Sampler.", default="euler", choices=["euler", "heun"]),
        lora: str = Input(description="Style.", default="fox.safetensors", choices=LORA_CHOICES),
        tiled: bool = Input(description="Whether to work in tiles.", default=False),
        seed: int | None = Input(
            description="Seed; blank for a random one, which the log and the metrics tell.",
            default=None,
            ge=0,
        ),
        output_format: str = Input(
            description="Format of pictures; original is as the workflow made them. What a format \
cannot hold, such as transparency in jpg, stays original.",
            default="original",
            choices=["original", "webp", "jpg", "png"],
        ),
        output_quality: int = Input(
            description="Quality of jpg and webp pictures; 100 makes webp lossless.",
            default=95,
            ge=0,
            le=100,
        ),
        hf_token: Secret | None = Input(
            description="Hugging Face token for private and gated weights; sent to huggingface.co \
only.",
            default=None,
        ),
    ) -> Iterator[Path]:
        """Run the workflow and yield each result file the moment its node has made it."""
        values = {
            "6.text": prompt,
            "7:2.text": prompt,
            "10.image": image,
            "11.image": mask,
            "3.steps": steps,
            "3.cfg": cfg,
            "3.sampler_name": sampler,
            "5.lora_name": lora,
            "8.tiled": tiled,
            "3.scheduler": "karras",
            "4.words": ["a", "b"],
        }
        # begin: yours
        # end: yours
        results = self.model.run(
            values,
            seed=seed,
            output_format=output_format,
            output_quality=output_quality,
            hf_token=hf_token,
            record_metric=self.record_metric,
        )
        for path in results:
            yield Path(path)
'''


def an_input(name: str, target: str, kind: Any, description: str, **more: Any) -> Param:
    return Param(name=name, targets=(target,), kind=kind, description=description, **more)


def whole() -> Interface:
    """An interface with something of everything."""
    names = ("fox.safetensors", "old/hen.safetensors")
    return Interface(
        params=(
            Param(
                name="prompt",
                targets=("6.text", "7:2.text"),
                kind="str",
                description="What to draw.",
                default='a "fox"',
            ),
            an_input(
                "image", "10.image", "Path", "What to start from.", required=True, accept="image/*"
            ),
            an_input("mask", "11.image", "Path", "What to keep.", blank=True, accept="image/*"),
            an_input(
                "steps",
                "3.steps",
                "int",
                "Number of sampling steps.",
                default=20,
                minimum=1,
                maximum=10000,
            ),
            an_input("cfg", "3.cfg", "float", "Guidance.", default=1, minimum=0, maximum=100),
            an_input(
                "sampler",
                "3.sampler_name",
                "str",
                "Sampler.",
                default="euler",
                choices=("euler", "heun"),
            ),
            an_input(
                "lora",
                "5.lora_name",
                "str",
                "Style.",
                default="fox.safetensors",
                choices=names,
                choices_from="folder:loras",
            ),
            an_input("tiled", "8.tiled", "bool", "Whether to work in tiles.", default=False),
        ),
        fixed={"3.scheduler": "karras", "4.words": ["a", "b"]},
        outputs=("9",),
        seed=True,
        pictures=True,
        tokens=("hf_token",),
    )


def inputs(text: str) -> Mapping[str, Any]:
    """Name to shape of each input, as the server checks it."""
    found: Mapping[str, Any] = schema.generate(text)["components"]["schemas"]["Input"]["properties"]
    return found


def ruff(*arguments: str, text: str | None = None) -> str:
    """What ruff has to say with the project's settings; nothing when all is well."""
    done = subprocess.run(
        [RUFF, *arguments, "--no-cache", "--quiet"],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=HERE.parent,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


def complaints(text: str) -> str:
    """What ruff's formatter and linter would change in a predict.py."""
    place = ("--stdin-filename", "predict.py", "-")
    return ruff("format", "--diff", *place, text=text) + ruff(
        "check", f"--extend-ignore={AUTHORS_OWN}", *place, text=text
    )


def test_it_is_what_a_person_would_have_written() -> None:
    text = predictor(whole(), "fox-model")
    assert text == EXPECTED
    assert complaints(text) == ""


def test_cog_reads_off_it_what_the_interface_says() -> None:
    found = inputs(EXPECTED)
    assert list(found) == [
        *("prompt", "image", "mask", "steps", "cfg", "sampler", "lora", "tiled"),
        *("seed", "output_format", "output_quality", "hf_token"),
    ]
    document = schema.generate(EXPECTED)["components"]["schemas"]
    assert document["Input"]["required"] == ["image"]
    assert document["lora"]["enum"] == ["fox.safetensors", "old/hen.safetensors"]
    assert found["steps"]["default"] == 20
    assert (found["cfg"]["minimum"], found["cfg"]["maximum"]) == (0, 100)
    assert found["image"]["x-cog-accept"] == "image/*"
    assert found["mask"]["nullable"]
    assert found["hf_token"]["x-cog-secret"]


def test_a_workflow_without_anything_to_set_makes_a_model_without_inputs() -> None:
    text = predictor(Interface(params=()), "")
    assert "    def run(self) -> Iterator[Path]:\n" in text
    assert "        values = {}\n" in text
    assert inputs(text) == {}
    assert complaints(text) == ""


@pytest.mark.parametrize(
    "value",
    [
        *("", "a fox", 'a "fox"', "a 'fox'", """both ' and " of them""", "\\escaped\\", "{a|b}"),
        *("line\nline", "\n\nquoted '''\n", '"""', 'ends with "', 'ends\nwith "', "(((x)))"),
        *(
            "a \\ b 'c' \"d\"",
            "tab\there",
            "trailing \nspaces ",
            "狐狸、雪",
            "👩\u200d🚀",
            "\u00a0",
        ),
        *(
            "\\'x",
            '\\"y',
            '"starts',
            "'''x",
            "%s {name} #",
            "r'raw'",
            "x" * 5000,
            'a\n"""\nb',
            "\\\\",
            "\\n",
            "é\n\n\n  é",
        ),
    ],
)
def test_a_text_stands_between_its_quotes_as_it_is(value: str) -> None:
    interface = Interface(
        params=(an_input("prompt", "6.text", "str", "Words.", default=value),),
        fixed={"7.text": value},
    )
    text = predictor(interface, "m")
    found = inputs(text)["prompt"]
    assert found.get("default") == value or "nullable" in found
    assert fixed_in(text)["7.text"] == value
    assert complaints(text) == ""


@pytest.mark.parametrize(
    "node_id",
    ['6": print(), "x', "6\\", "it's", "both '\"", "two\nlines", "\n# end: yours\n", "{}"],
)
def test_a_nodes_id_is_a_text_whatever_stands_in_it(node_id: str) -> None:
    interface = Interface(
        params=(an_input("prompt", f"{node_id}.text", "str", "Words.", default="a"),),
        fixed={f"{node_id}.cfg": 1.0},
        outputs=(node_id,),
    )
    text = predictor(interface, "m")
    values = next(
        each.value
        for each in ast.walk(ast.parse(text))
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "values"
    )
    assert isinstance(values, ast.Dict)
    keys = [ast.literal_eval(key) for key in values.keys if key is not None]
    assert keys == [f"{node_id}.text", f"{node_id}.cfg"]
    assert ast.unparse(values.values[0]) == "prompt"
    assert complaints(text) == ""
    assert skeleton(text) == text


@pytest.mark.parametrize(
    "line",
    [
        *("# begin: yours", "  # end: yours", "<!-- begin: yours -->"),
        "# choices from folder:loras, written anew by comfy-runner schema",
    ],
)
def test_a_text_with_lines_like_marks_brings_none(line: str) -> None:
    value = f"a\n{line}\nb"
    made = an_input("it", "6.text", "str", "Words.", default=value)
    assert settled(made).blank
    text = predictor(Interface(params=(made,), fixed={"7.text": value}), "m")
    assert fixed_in(text)["7.text"] == value
    assert skeleton(text) == text
    assert refresh_choices(text, lambda _: ["x"]) == text


@pytest.mark.parametrize(
    "value",
    [
        *("a\rb", "nul \0", "\u200bhidden", "\ud800", "\u202eturned", "ends with \\"),
        *("both '''\n\"\"\"\n", float("inf"), float("nan"), 2**63, None),
    ],
)
def test_what_no_literal_holds_is_left_to_the_workflow(value: Any) -> None:
    kinds: Mapping[type, Any] = {float: "float", int: "int"}
    made = an_input("it", "6.text", kinds.get(type(value), "str"), "Words.", default=value)
    assert settled(made).blank
    text = predictor(Interface(params=(made,)), "m")
    found = inputs(text)["it"]
    assert "default" not in found or found["default"] is None
    assert found["nullable"]
    assert complaints(text) == ""


def test_choices_that_no_literal_holds_are_not_listed() -> None:
    made = an_input("it", "6.x", "str", "One.", default="a", choices=("a", "b\r"))
    assert settled(made).choices is None
    assert inputs(predictor(Interface(params=(made,)), "m"))["it"]["default"] == "a"


def test_a_description_is_one_line_however_a_tooltip_is_written() -> None:
    said = 'Says "that",\n  and \'this\'\t(or """it""") \\ \0 \u202e'
    text = predictor(Interface(params=(an_input("it", "6.x", "bool", said, default=True),)), "m")
    found = inputs(text)["it"]["description"]
    assert "\n" not in found
    assert found.startswith("Says ")
    assert complaints(text) == ""


@pytest.mark.parametrize(
    "name", ["", "Fox (v2)", 'a "b"', "back\\slash\\", "line\nline", "狐狸", "#"]
)
def test_any_name_may_stand_in_its_first_line(name: str) -> None:
    text = predictor(Interface(params=()), name)
    assert (ast.get_docstring(ast.parse(text)) or "").endswith(
        ": a Cog model of the ComfyUI workflow in workflows/workflow.json."
    )
    assert complaints(text) == ""


# Any interface

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,30}", fullmatch=True).filter(is_usable)
TEXTS = st.text(max_size=60) | st.text(alphabet="\"'\\\n ()#a{}\t", max_size=12)
NUMBERS = st.integers() | st.floats()
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)


@st.composite
def interfaces(draw: st.DrawFn) -> Interface:
    params = []
    for number, name in enumerate(draw(st.lists(NAMES, unique=True, max_size=4))):
        kind = draw(st.sampled_from(["str", "int", "float", "bool", "Path"]))
        more: dict[str, Any] = {}
        match kind:
            case "str":
                more["default"] = draw(TEXTS)
                if draw(st.booleans()):
                    more["choices"] = tuple(draw(st.lists(TEXTS, unique=True, min_size=1)))
                    more["default"] = more["choices"][0]
            case "int":
                more["default"] = draw(st.integers())
                more["minimum"] = draw(st.none() | st.integers(-(2**53), 2**53))
            case "float":
                more["default"] = draw(st.floats())
            case "bool":
                more["default"] = draw(st.booleans())
            case _:
                more["required"] = draw(st.booleans())
                more["blank"] = not more["required"]
        params.append(an_input(name, f"{number}.{name}", kind, draw(TEXTS), **more))
    return Interface(
        params=tuple(params),
        fixed={f"f{number}.x": value for number, value in enumerate(draw(st.lists(VALUES)))},
        outputs=tuple(draw(st.lists(st.from_regex(r"\d+(:\d+)*", fullmatch=True), unique=True))),
        seed=draw(st.booleans()),
        pictures=draw(st.booleans()),
        tokens=tuple(draw(st.sets(st.sampled_from(["hf_token", "civitai_token"])))),
    )


@given(interfaces(), st.text(max_size=20))
def test_cog_reads_any_interface_without_a_problem(interface: Interface, name: str) -> None:
    found = inputs(predictor(interface, name))
    for param in map(settled, interface.params):
        if not param.blank and not param.required:
            assert found[param.name]["default"] == param.default


@settings(max_examples=10, phases=[Phase.generate])
@given(interfaces(), st.text(max_size=20))
def test_ruff_has_nothing_to_change_in_any(interface: Interface, name: str) -> None:
    assert complaints(predictor(interface, name)) == ""


@given(VALUES)
def test_any_value_is_written_as_python_reads_it(value: Any) -> None:
    text = (
        written(value, 12, 10).replace('float("inf")', "1e999").replace('float("-inf")', "-1e999")
    )
    assert ast.literal_eval(text) == value


@given(TEXTS)
def test_a_literal_of_a_signature_is_the_text_itself(value: str) -> None:
    literal = signature_text(value)
    if literal is not None:
        assert ast.literal_eval(literal) == value
        assert value in literal


def test_every_template_makes_a_predictor_that_cog_and_ruff_take(tmp_path: Path) -> None:
    made = 0
    for path in sorted(TEMPLATES.glob("*.json")):
        try:
            conversion = read_workflow(path.read_bytes(), catalog())
        except CallerError:
            continue  # of a class that is not installed
        text = predictor(design(conversion, catalog()), path.stem)
        schema.generate(text)
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / "predict.py").write_text(text, "utf-8")
        made += 1
    assert made > 400
    config = f"--config={HERE.parent / 'pyproject.toml'}"
    assert ruff("format", "--check", config, str(tmp_path)) == ""
    # Where imports belong is known only beside the package.
    ignored = f"--extend-ignore={AUTHORS_OWN},I001"
    assert ruff("check", config, ignored, str(tmp_path)) == ""


# Choices written anew


def lists(names: Sequence[str]) -> Any:
    """Lists that have these names for every source."""
    return lambda _: names


def test_choices_are_written_anew_and_nothing_else() -> None:
    mine = EXPECTED.replace("# begin: yours\n", "# begin: yours\nODD   = [ 'ä' ]\n", 1)
    asked: list[str] = []

    def look(source: str) -> Sequence[str]:
        asked.append(source)
        return [f"{number}.safetensors" for number in range(9)] + ["fox.safetensors"]

    made = refresh_choices(mine, look)
    assert asked == ["folder:loras"]
    assert schema.generate(made)["components"]["schemas"]["lora"]["enum"] == look("")
    assert ruff("format", "--diff", "-", text=made.replace("ODD   = [ 'ä' ]\n", "")) == ""
    assert refresh_choices(made, lists(["fox.safetensors", "old/hen.safetensors"])) == mine


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([], "no_choices"),
        (["hen.safetensors"], "lost_default"),
        (["fox.safetensors", "bad\rname"], "bad_choice"),
    ],
)
def test_choices_that_do_not_fit_change_nothing(names: Sequence[str], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        refresh_choices(EXPECTED, lists(names))
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_default_that_fell_out_is_told_with_its_input() -> None:
    with pytest.raises(InvalidInput, match=r"lora: Its default 'fox.safetensors' is not in folder"):
        refresh_choices(EXPECTED, lists(["hen.safetensors"]))


def test_a_mark_without_its_list_is_told() -> None:
    broken = EXPECTED.replace("LORA_CHOICES = [", "\nLORA_CHOICES = [", 1)
    with pytest.raises(InvalidInput, match="There is no list below"):
        refresh_choices(broken, lists(["fox.safetensors"]))


def test_what_is_no_python_is_told() -> None:
    with pytest.raises(InvalidInput, match=r"This is not Python: .* \(line 2\)"):
        refresh_choices("x = 1\ny = (\n", lists([]))


def test_a_text_without_marks_stays() -> None:
    plain = predictor(Interface(params=()), "m")
    assert refresh_choices(plain, lists([])) == plain


def fixed_in(text: str) -> Mapping[str, Any]:
    """The plain values of the dictionary in `run`."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Assign(targets=[ast.Name(id="values")], value=ast.Dict() as found):
                return {
                    ast.literal_eval(key): ast.literal_eval(value)
                    for key, value in zip(found.keys, found.values, strict=True)
                    if key is not None and not isinstance(value, ast.Name)
                }
    raise AssertionError(text)
