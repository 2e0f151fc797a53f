"""What callers of a model meet when its inputs change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.publishing.compatibility import Change, compare, is_streaming, lint
from comfy_runner.serving import schema

HEAD = """
from typing import Any, Iterator
import cog
from cog import BaseRunner, Input, Path, Secret

class Predictor(BaseRunner):
    {decorator}
    def run(self{parameters}) -> {returns}:
        pass
"""


def model(*parameters: str, returns: str = "str", decorator: str = "") -> schema.Json:
    """The document of a model with these parameters, as Cog would write it."""
    listed = "".join(f", {each}" for each in ("*", *parameters)) if parameters else ""
    text = HEAD.format(parameters=listed, returns=returns, decorator=decorator)
    return schema.generate(text)


def differences(old: str, new: str) -> list[tuple[bool, str]]:
    """What is told of an input x that was declared so and is now declared otherwise."""
    found = compare(model(f"x: {old}"), model(f"x: {new}"))
    assert {change.input for change in found} <= {"x"}
    return [(change.breaking, change.what) for change in found]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("int", "float", "It is float now, before int."),
        ("str", "Path", "It is Path now, before str."),
        ("str", "Secret", "It is Secret now, before str."),
        ("list[int]", "list[str]", "It is list[str] now, before list[int]."),
        ("int = Input(ge=1)", "int = Input(ge=2)", "Its minimum is 2 now, before 1."),
        ("int", "int = Input(ge=2)", "It has a minimum now: 2."),
        ("float = Input(le=2.5)", "float = Input(le=1.0)", "Its maximum is 1 now, before 2.5."),
        (
            "int = Input(le=9007199254740992)",
            "int = Input(le=9007199254740991)",
            "Its maximum is 9007199254740991 now, before 9007199254740992.",
        ),
        ("str", "str = Input(max_length=5)", "It has a greatest length now: 5."),
        (
            "str = Input(min_length=1)",
            "str = Input(min_length=2)",
            "Its least length is 2 now, before 1.",
        ),
        ("str", "str = Input(regex='^a')", "It has to match '^a' now."),
        (
            "str = Input(regex='^a')",
            "str = Input(regex='^b')",
            "It has to match '^b' now, before '^a'.",
        ),
        (
            "str = Input(choices=['a', 'b'])",
            "str = Input(choices=['a'])",
            "It no longer takes 'b'.",
        ),
        (
            "str",
            "str = Input(choices=['a'])",
            "It takes only 'a' now, before any value of its type.",
        ),
        (
            "str = Input(choices=['a'])",
            "str",
            "It takes any value now, which cog-safe-push refuses: it had choices.",
        ),
        ("int = Input(choices=[1])", "str = Input(choices=['1'])", "It is str now, before int."),
        ("int = 3", "int", "It is required now."),
        ("int | str", "int", "It is int now, before int | str."),
        (
            "int",
            "int | str",
            "It is int | str now, before int, which cog-safe-push refuses although it takes more.",
        ),
    ],
)
def test_what_refuses_a_call_that_was_right_is_breaking(old: str, new: str, says: str) -> None:
    assert differences(old, new) == [(True, says)]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("int = Input(ge=2)", "int = Input(ge=1)", "Its minimum is 1 now, before 2."),
        ("int = Input(le=2)", "int", "It has no maximum any more, before 2."),
        ("str = Input(regex='^a')", "str", "It may be any text now, before '^a'."),
        ("str = Input(choices=['a'])", "str = Input(choices=['b', 'a'])", "It takes 'b' as well."),
        ("int", "int = 3", "It may be left out now; its default is 3."),
        ("int = 3", "int = 4", "Its default is 4 now, before 3."),
        (
            "str = Input(description='Old.')",
            "str = Input(description='New.')",
            "Its description is now: New.",
        ),
        ("str = Input(description='Old.')", "str", "Its description is gone."),
        ("str", "str = Input(deprecated=True)", "It is deprecated now."),
        ("str = Input(deprecated=True)", "str", "It is no longer deprecated."),
        ("Path", "Path = Input(accept='image/*')", "A browser offers image/* for it now."),
        ("int | str", "int | str | float", "It is int | str | float now, before int | str."),
    ],
)
def test_what_refuses_nothing_is_told_and_not_breaking(old: str, new: str, says: str) -> None:
    assert differences(old, new) == [(False, says)]


def test_the_members_of_a_union_have_no_order() -> None:
    assert differences("int | str", "str | int") == []


def test_inputs_that_come_and_go_are_told_those_that_break_first() -> None:
    old = model("a: int = 1", "gone: str")
    new = model("blank: int | None", "needed: str", "extra: bool = True", "a: int = 2")
    assert compare(old, new) == [
        Change(True, "gone", "It is gone."),
        Change(
            True,
            "blank",
            "It is new, and cog-safe-push takes it for required: give it default=None.",
        ),
        Change(True, "needed", "It is new and required."),
        Change(False, "a", "Its default is 2 now, before 1."),
        Change(False, "extra", "It is new; its default is True."),
    ]


def test_many_choices_are_cut() -> None:
    many = [f"{number:03}" for number in range(20)]
    ((breaking, what),) = differences(
        f"str = Input(choices={['x', *many]!r})", "str = Input(choices=['x'])"
    )
    assert breaking
    assert what.endswith("'007' and 12 more.")


@pytest.mark.parametrize(
    ("old", "new", "breaking", "says"),
    [
        ("str", "Path", True, "It is Path now, before str."),
        ("Iterator[Path]", "Iterator[str]", True, "It is list[str] now, before list[Path]."),
        (
            "dict[str, int]",
            "dict[str, str]",
            True,
            "It is dict[str, str] now, before dict[str, int].",
        ),
    ],
)
def test_another_output_is_breaking(old: str, new: str, breaking: bool, says: str) -> None:
    assert compare(model(returns=old), model(returns=new)) == [Change(breaking, "", says)]


def test_a_stream_that_ends_is_told() -> None:
    plain = model(returns="Iterator[Path]")
    streamed = model(returns="Iterator[Path]", decorator="@cog.streaming")
    assert (is_streaming(plain), is_streaming(streamed)) == (False, True)
    assert compare(streamed, plain) == [Change(True, "", "It can no longer be streamed.")]
    assert compare(plain, streamed) == [Change(False, "", "It can now be streamed.")]


PARAMETERS = st.lists(
    st.sampled_from(
        [
            *("int", "float = 1.5", "str = Input(choices=['a', 'b'])", "Path | None = None"),
            *("int | str", "list[Path]", "Secret", "int = Input(ge=1, le=5, default=2)"),
        ]
    ),
    max_size=4,
)


@given(PARAMETERS, PARAMETERS)
def test_a_model_breaks_nothing_of_its_own_and_another_only_what_it_names(
    one: list[str], other: list[str]
) -> None:
    old = model(*(f"x{number}: {kind}" for number, kind in enumerate(one)))
    new = model(*(f"x{number}: {kind}" for number, kind in enumerate(other)))
    assert compare(old, old) == []
    differing = {
        f"x{number}"
        for number in range(max(len(one), len(other)))
        if one[number : number + 1] != other[number : number + 1]
    }
    assert {change.input for change in compare(old, new)} == differing


def test_an_input_without_a_description_is_found_unless_it_is_deprecated() -> None:
    found = lint(
        model("a: int", "b: int = Input(description='B.')", "c: str = Input(deprecated=True)")
    )
    assert [(problem.code, problem.input) for problem in found] == [("no_description", "a")]


@pytest.mark.parametrize("document", [{}, {"components": {"schemas": {}}}, {"openapi": "3.0.2"}])
def test_what_is_no_document_of_a_model_is_refused(document: schema.Json) -> None:
    with pytest.raises(InvalidInput, match="NEW: It is no OpenAPI document of a Cog model"):
        compare(model(), document)
