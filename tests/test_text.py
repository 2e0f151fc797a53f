"""Texts that the editor changes when it sends them: dynamic prompts, and `%...%` in file names."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from editor_files import document, empty_image, save_image, sent, subgraph, ui
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_runner.convert.text import SAVERS, Dice, expand, replace

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain | text }", "plain | text }"),
        ("{one}", "one"),
        ("{}", ""),
        ("{|}", ""),
        ("{a|a}", "a"),
        ('{"a": 1}', '"a": 1'),
        ("a {b", "a b"),
        ("{{a}{b}}", "ab"),
        ("{a}|{b}", "a|b"),
        (r"\{a\|b\}", "{a|b}"),
        (r"{\{a\}}", "{a}"),
        (r"\(a\) \n \\", r"\(a\) \n \\"),
        ("a\\", "a\\"),
        ("a // b", "a "),
        ("a // b\nc", "a \nc"),
        ("a // b\r\nc", "a \r\nc"),
        ("see http://example.org/x, y", "see http:"),
        ("a /* b\n c */ d", "a  d"),
        ("a /* b // c */ d", "a  d"),
        ("a // b /* c\nd */ e", "a \nd */ e"),
        ("a /* b */ c */", "a  c */"),
        ("a /* b", "a /* b"),
        ("a /* b // c", "a /* b "),
        ("/*/ a", "/*/ a"),
        ("/**/a", "a"),
        ("/* a *//* b */c", "c"),
        ("{a/*|b*/}", "a"),
        (r"a /\* b", r"a /\* b"),
    ],
)
def test_a_dynamic_prompt_without_a_choice(text: str, expected: str) -> None:
    assert expand(text, Dice(0, "")) == expected


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("{a|b|c}", {"a", "b", "c"}),
        ("x{a|}y", {"xay", "xy"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{a|b}{c|d}", {"ac", "ad", "bc", "bd"}),
        ("{{a|b}|c", {"a", "b", "c"}),
        (r"{a\|b|c}", {"a|b", "c"}),
    ],
)
def test_every_choice_is_made_by_some_seed(text: str, choices: set[str]) -> None:
    made = {expand(text, Dice(seed, "6.text")) for seed in range(60)}
    assert made == choices


def test_the_same_seed_and_place_choose_the_same() -> None:
    text = "{a|b|c|d} {a|b|c|d} {a|b|c|d}"
    assert expand(text, Dice(3, "6.text")) == expand(text, Dice(3, "6.text"))
    assert expand(text, Dice(3, "6.text")) != expand(text, Dice(3, "7.text"))


def test_choices_are_about_as_likely_as_each_other() -> None:
    counts = Counter(Dice(seed, "x").below(4) for seed in range(4_000))
    assert counts.keys() == {0, 1, 2, 3}
    assert all(850 < count < 1_150 for count in counts.values())


@settings(deadline=None)
@given(st.text(alphabet="{}|\\/*ab\n", max_size=40), st.integers())
def test_any_text_can_be_expanded(text: str, seed: int) -> None:
    made = expand(text, Dice(seed, "x"))
    assert set(made) <= set(text)
    assert len(made) <= len(text)


def test_long_texts_are_no_trouble() -> None:
    assert expand("{" * 50_000, Dice(0, "")) == ""
    assert expand("{a|" * 30_000 + "b", Dice(0, "")).count("a") in (0, 1)
    assert expand("/* " * 50_000, Dice(0, "")) == "/* " * 50_000
    assert expand("/* */" * 30_000, Dice(0, "")) == ""


def encoder(text: str, node_id: int = 1) -> dict[str, Any]:
    """A node whose text is a dynamic prompt."""
    return ui(node_id, "CLIPTextEncode", [text])


def texts(file: Any, **how: Any) -> list[str]:
    """The text of every node that is sent."""
    return [node["inputs"]["text"] for node in sent(file, **how).values()]


def test_a_prompt_is_chosen_by_the_seed_and_each_node_chooses_for_itself() -> None:
    file = document([encoder("{a|b|c|d|e|f|g|h}", node_id) for node_id in range(1, 9)])
    assert texts(file) == texts(file, seed=0)
    assert len(set(texts(file))) > 1
    assert len({tuple(texts(file, seed=seed)) for seed in range(5)}) == 5


def test_instances_of_one_subgraph_choose_for_themselves() -> None:
    inner = subgraph("inner", [encoder("{a|b|c|d|e|f|g|h}", 20)])
    file = document([ui(node_id, "inner") for node_id in range(1, 9)], subgraphs=[inner])
    assert len(set(texts(file))) > 1


def test_a_text_that_is_no_prompt_stays() -> None:
    made = sent(document([ui(1, "PrimitiveString", ["{a|b} // c"])]))
    assert made["1"]["inputs"]["value"] == "{a|b} // c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%date:yyyy-MM-dd%", "2026-03-04"),
        ("%date:d.M%", "%date:d.M%"),
        ("%date:yy M d h m s%", "26 3 4 5 6 7"),
        ("%date:hh:mm:ss%", "05:06:07"),
        ("%date:yyyyMMddhhmmss%", "20260304050607"),
        ("%date:yyy%", "yyy"),
        ("%date:yyyyy%", "2026y"),
        ("%date:ddd%", "044"),
        ("%date:YYYY DD%", "YYYY DD"),
        ("%date:%", ""),
        ("%date:yyyy.MM.dd%", "2026"),
        ("%date%", "%date%"),
        ("%year%_%width%", "%year%_%width%"),
        ("100% of 50%", "100% of 50%"),
        ("%%", "%%"),
        ("%date:dd", "%date:dd"),
        ("a%date:dd%b%date:MM%c", "a04b03c"),
        ("%Some.width%", "64"),
        ("%Some.height%", "%Some.height%"),
        ("%Other.width%", "%Other.width%"),
        ("%Some.width.more%", "%Some.width.more%"),
        ("%.%", "%.%"),
        ("", ""),
    ],
)
def test_dates_and_names_are_written_out(text: str, expected: str) -> None:
    values = {("Some", "width"): 64}
    assert replace(text, NOW, lambda *name: values[name]) == expected


def test_afternoons_have_24_hours() -> None:
    assert replace("%date:h hh%", NOW.replace(hour=15), lambda *_: "") == "15 15"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b\\c", "a_b_c"),
        ('?<>:*|"\n\x7f', "_________"),
        ("ü 1.5 (x)", "ü 1.5 (x)"),
        (True, "true"),
        (False, "false"),
        (None, ""),
        (3, "3"),
        (3.0, "3"),
        (0.25, "0.25"),
        (2**70, str(2**70)),
        ([1, "a", None, [True, []]], "1,a,,true,"),
        ([], ""),
        ({"a": 1}, "[object Object]"),
    ],
)
def test_a_value_is_written_as_javascript_does_and_fit_for_a_file_name(
    value: Any, expected: str
) -> None:
    assert replace("%A.b%", NOW, lambda *_: value) == expected


def test_a_value_may_nest_deeply() -> None:
    deep: Any = "x"
    for _ in range(10_000):
        deep = [deep]
    assert replace("%A.b%", NOW, lambda *_: deep) == "x"


def prefix(text: str, *others: Any, node: str = "SaveImage", **how: Any) -> str:
    """The file name that a saving node is sent with, in a file with these nodes as well."""
    saver = ui(99, node, {"filename_prefix": text})
    made = sent(document([*others, saver], **how), now=NOW)
    name: str = made["99"]["inputs"]["filename_prefix"]
    return name


@pytest.mark.parametrize("class_type", sorted(SAVERS))
def test_the_file_name_of_every_node_that_saves_is_written_out(class_type: str) -> None:
    assert prefix("%date:yyyy%/x", node=class_type) == "2026/x"


def test_the_file_name_of_other_nodes_stays() -> None:
    assert "SaveText" not in SAVERS
    assert prefix("%date:yyyy%", node="SaveText") == "%date:yyyy%"


def test_a_node_is_found_by_the_name_for_it_before_its_title() -> None:
    titled = empty_image(1, title="A")
    named = empty_image(2, (7, 8, 1, 0), properties={"Node name for S&R": "A"})
    assert prefix("%A.width%", titled) == "64"
    assert prefix("%A.width%", titled, named) == "7"
    assert prefix("%A.nothing%", titled, named) == "%A.nothing%"
    without_choices = ui(1, "UpscaleModelLoader", title="A")
    assert prefix("%A.model_name%", without_choices) == "%A.model_name%"
    assert prefix("%Empty Image.width%", empty_image(1)) == "64"


def test_the_first_node_of_a_name_counts_even_when_it_is_muted() -> None:
    assert prefix("%A.width%", empty_image(1, title="A", mode=2), empty_image(2, title="A")) == "64"


def test_a_node_inside_a_subgraph_is_found_too_and_before_its_instance() -> None:
    inner = subgraph(
        "inner", [empty_image(10, title="A")], [(1, -10, 0, 10, 0, "INT")], [("width", "INT")]
    )
    inner["nodes"][0]["inputs"] = [{"name": "width", "link": 1}]
    instance = ui(1, "inner", [300], title="A")
    definitions = {"subgraphs": [inner]}
    assert prefix("%A.width%", instance, definitions=definitions) == "64"
    instance["title"] = "B"
    assert prefix("%B.width%", instance, definitions=definitions) == "300"


def test_a_widget_that_a_primitive_drives_has_its_value_in_a_name() -> None:
    file = document(
        [
            ui(1, "PrimitiveNode", [640, "fixed"], title="Width"),
            empty_image(2, title="A", links={"width": 1}),
            save_image(3, None, "%A.width%_%Width.value%"),
        ],
        [(1, 1, 0, 2, 0, "INT")],
    )
    assert sent(file)["3"]["inputs"]["filename_prefix"] == "640_640"


def test_a_primitive_that_drives_nothing_has_no_value_in_a_name() -> None:
    assert prefix("%P.value%", ui(1, "PrimitiveNode", [640], title="P")) == "%P.value%"
