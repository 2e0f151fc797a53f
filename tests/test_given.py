"""Texts of a command line as the inputs of a model."""

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.serving import given as module
from comfy_runner.serving import schema
from comfy_runner.serving.given import typed

DOCUMENT = schema.generate("""
from cog import BaseRunner, Input, Path, Secret

class Predictor(BaseRunner):
    def run(
        self,
        prompt: str = Input(description="What to draw.", default=""),
        steps: int = Input(default=20, ge=1, le=50),
        cfg: float = Input(default=4.5, le=30.0),
        tiled: bool = False,
        seed: int | None = Input(default=None, ge=0),
        size: str = Input(choices=["small", "large"], default="small"),
        scale: int = Input(choices=[2, 4], default=2),
        image: Path | None = None,
        files: list[Path] | None = None,
        numbers: list[int] = [1],
        either: int | str = "x",
        lists: int | list[int] = 1,
        extra: dict = {},
        hf_token: Secret | None = None,
    ) -> str:
        pass
""")
NEEDY = schema.generate("""
from cog import BaseRunner, Input

class Predictor(BaseRunner):
    def run(self, prompt: str = Input(description="What to draw."), n: int = 1) -> str:
        pass
""")


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["prompt=a fox=red"], "a fox=red"),
        (["prompt="], ""),
        (["prompt=@@me"], "@me"),
        (["prompt=7"], "7"),
        (["steps=7"], 7),
        (["seed=18446744073709551615"], 2**64 - 1),
        (["cfg=1e1"], 10.0),
        (["tiled=Yes"], True),
        (["tiled=false"], False),
        (["size=large"], "large"),
        (["scale=4"], 4),
        (["image=https://example.com/a.png"], "https://example.com/a.png"),
        (["image=data:image/png;base64,eA=="], "data:image/png;base64,eA=="),
        (["numbers=1", "numbers=2"], [1, 2]),
        (["numbers=[3, 4]"], [3, 4]),
        (["either=3"], 3),
        (["either=three"], "three"),
        (["lists=[3]"], [3]),
        (['extra={"a": [1]}'], {"a": [1]}),
        (["hf_token=hf_x"], "hf_x"),
    ],
)
def test_a_text_becomes_what_the_schema_wants(texts: list[str], value: Any) -> None:
    (found,) = typed(texts, DOCUMENT).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["steps", "seed", "cfg", "tiled", "image", "files", "extra"])
def test_nothing_leaves_out_what_is_no_text(name: str) -> None:
    assert typed([f"{name}="], DOCUMENT) == {}


def test_a_file_is_sent_as_a_data_uri_whatever_takes_it(tmp_path: Path) -> None:
    picture, plain = tmp_path / "a.png", tmp_path / "odd.qqq"
    picture.write_bytes(b"\x89PNG")
    plain.write_bytes(b"")
    whole = f"data:image/png;base64,{base64.b64encode(b'\x89PNG').decode()}"
    empty = "data:application/octet-stream;base64,"
    assert typed([f"image=@{picture}", f"prompt=@{picture}"], DOCUMENT) == {
        "image": whole,
        "prompt": whole,
    }
    assert typed([f"files=@{picture}", f"files=@{plain}"], DOCUMENT) == {"files": [whole, empty]}


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("steps", "bad_option", "'steps' has no value. Write NAME=VALUE."),
        ("=3", "bad_option", "'=3' has no value."),
        ("stesp=3", "unknown_input", "The model has no such input. Did you mean 'steps'"),
        ("zzz=3", "unknown_input", "It has prompt, steps, cfg,"),
        ("steps=many", "no_int", "'many' is no whole number."),
        ("steps=1.5", "no_int", "'1.5' is no whole number."),
        ("steps=0", "too_small", "0 is below the minimum 1."),
        ("steps=51", "too_large", "51 is above the maximum 50."),
        ("cfg=nan", "no_float", "'nan' is no number."),
        ("cfg=30.5", "too_large", "30.5 is above the maximum 30"),
        ("tiled=maybe", "no_bool", "'maybe' is neither true nor false."),
        ("size=larg", "no_such_choice", "Did you mean 'large'?"),
        ("scale=3", "no_such_choice", "It takes 2, 4."),
        ("image=gone.png", "no_file_given", "'gone.png' is no URL. Write image=@PATH"),
        ("image=@gone.png", "no_file", "gone.png cannot be read: No such file"),
        ("prompt=@home", "no_file", "with two: @@"),
        ("files=gone.png", "no_file_given", "Write files=@PATH"),
        ("numbers=x", "no_int", "'x' is no whole number."),
        ("numbers=[", "no_json", "It is not JSON"),
        ("extra=[]", "no_json", "It is no JSON object."),
        ("lists=x", "no_variant", "'x' is no whole number. It is not JSON"),
    ],
)
def test_a_text_that_does_not_fit_is_told_at_its_input(text: str, code: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        typed([text], DOCUMENT)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.input == ("-i" if code == "bad_option" else text.partition("=")[0])
    assert says in f"{problem.what} {problem.hint}"


def test_a_file_without_its_sign_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match=f"Write image=@{path} to send that file."):
        typed([f"image={path}"], DOCUMENT)


def test_files_that_no_request_can_hold_are_told_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(module.MAX_FILES + 1)
    with pytest.raises(InvalidInput, match="Give a URL of it"):
        typed([f"image=@{tmp_path / 'huge.mp4'}"], DOCUMENT)
    monkeypatch.setattr(module, "MAX_FILES", 100)
    (tmp_path / "half").write_bytes(bytes(60))
    half = f"files=@{tmp_path / 'half'}"
    assert len(typed([half], DOCUMENT)["files"]) == 1
    with pytest.raises(InvalidInput, match="The files have 120 bytes together"):
        typed([half, half], DOCUMENT)


def test_every_problem_comes_at_once_with_what_is_missing() -> None:
    with pytest.raises(InvalidInput) as caught:
        typed(["n=x", "m=1", "n"], NEEDY)
    assert [(each.code, each.input) for each in caught.value.problems] == [
        ("unknown_input", "m"),
        ("bad_option", "-i"),
        ("no_int", "n"),
        ("missing_input", "prompt"),
    ]
    assert caught.value.problems[-1].hint == "Give -i prompt=VALUE. What to draw."
    with pytest.raises(InvalidInput, match="given more than once"):
        typed(["prompt=a", "prompt=b"], NEEDY)


@given(st.text())
def test_any_text_comes_through_as_it_is(text: str) -> None:
    written = f"@{text}" if text.startswith("@") else text
    assert typed([f"prompt={written}"], NEEDY) == {"prompt": text}


@given(st.integers(min_value=1, max_value=50), st.floats(max_value=30, allow_nan=False))
def test_any_number_within_its_limits_is_taken(steps: int, cfg: float) -> None:
    if cfg == float("-inf"):
        return
    assert typed([f"steps={steps}", f"cfg={cfg!r}"], DOCUMENT) == {"steps": steps, "cfg": cfg}
