"""What the node policy refuses, what it lets through, and that the templates get through."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from editor_files import TEMPLATES, catalog_of
from graphs import WORKFLOWS, bundled, catalog, node, picture

from comfy_runner.convert.formats import read_workflow
from comfy_runner.errors import CallerError, Problem
from comfy_runner.graph import policy
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Workflow, parse

DEFAULT = policy.load()


def problems(
    document: dict[str, Any],
    rules: policy.NodePolicy = DEFAULT,
    known: NodeCatalog | None = None,
) -> list[Problem]:
    return policy.check(parse(document), known or catalog(), rules)


def refused(*args: Any, **kwargs: Any) -> list[tuple[str, str, str]]:
    """Code, node and input of every problem."""
    return [(p.code, p.node_id, p.input) for p in problems(*args, **kwargs)]


def custom(name: str, inputs: dict[str, Any], *outputs: str, **more: Any) -> dict[str, Any]:
    """A class of a custom pack, as `/object_info` tells it."""
    entry = {
        "input": {"required": inputs},
        "output": list(outputs),
        "python_module": "custom_nodes.pack",
        **more,
    }
    return {name: entry}


IMAGE = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}


def switch(value: Any) -> dict[str, Any]:
    return node("ComfySwitchNode", "If", switch=True, on_true=value, on_false=value)


def test_a_refused_class_is_told_with_the_reason_and_both_cures() -> None:
    document = IMAGE | {"2": node("SaveImageDataSetToFolder", "Keep", images=["1", 0])}
    (problem,) = problems(document)
    assert str(problem) == (
        "node 2 (Keep): SaveImageDataSetToFolder may not be used here: its file name prefix may"
        " lead out of the output folder, and nothing that it writes comes back. Use SaveImage."
        " Who runs this can allow it: COMFY_RUNNER_ALLOW_NODES=SaveImageDataSetToFolder."
    )
    assert problem.code == "refused_class"


def test_every_refused_node_is_told_in_the_workflows_order() -> None:
    document = {key: node("SaveTrainingDataset") for key in ("9", "1", "5")}
    assert [node_id for _, node_id, _ in refused(document)] == ["9", "1", "5"]


def test_classes_of_paid_services_are_refused() -> None:
    info = catalog().raw["object_info"]
    paid = {
        name
        for name, entry in info.items()
        if entry.get("api_node") or entry["python_module"].startswith("comfy_api_nodes")
    }
    assert len(paid) == 235
    found = problems({name: node(name) for name in paid})
    assert {problem.node_id for problem in found} == paid


def test_what_is_never_loaded_no_setting_allows() -> None:
    settings = [{}, {"allow": ["ClaudeNode"]}, {"only": ["ClaudeNode"]}, {"only": []}]
    found = [problems({"1": node("ClaudeNode")}, policy.load(**each)) for each in settings]
    assert all(each == found[0] for each in found)
    (problem,) = found[0]
    assert problem.hint == (
        "Take it out: ComfyUI is started without such nodes, and no setting changes that."
        " Use a node that computes here."
    )
    assert "COMFY_RUNNER" not in str(problem)


def test_a_packs_own_class_for_a_paid_service_is_refused_too() -> None:
    known = catalog_of(custom("Paid", {}, "IMAGE", api_node=True))
    assert refused({"1": node("Paid")}, known=known) == [("refused_class", "1", "")]
    # Packs are loaded, so that this one can be allowed.
    assert refused({"1": node("Paid")}, policy.load(allow=["Paid"]), known=known) == []


def test_other_classes_of_packs_may_be_used() -> None:
    known = catalog_of(custom("Theirs", {"path": ["STRING", {}]}, "IMAGE"))
    assert refused({"1": node("Theirs", path="/etc/passwd")}, known=known) == []


def test_settings_allow_deny_and_choose_classes() -> None:
    document = picture() | {"3": node("SaveLoRA", lora=["1", 0], prefix="x")}
    assert refused(document) == [("refused_class", "3", "")]
    assert refused(document, policy.load(allow=["SaveLoRA"])) == []
    assert refused(document, policy.load(deny=["EmptyImage"])) == [
        ("refused_class", "1", ""),
        ("refused_class", "3", ""),
    ]
    denied = policy.load(allow=["SaveLoRA"], deny=["SaveLoRA"])
    assert refused(document, denied) == [("refused_class", "3", "")]
    assert refused(document, policy.load(only=["EmptyImage", "SaveLoRA"])) == [
        ("refused_class", "2", "")
    ]
    assert "COMFY_RUNNER_ONLY_NODES" in problems(document, policy.load(only=[]))[0].hint
    assert "COMFY_RUNNER_DENY_NODES" in problems(document, denied)[0].hint


def test_a_class_that_is_not_installed_is_not_the_policys_affair() -> None:
    assert refused({"1": node("Nobody", x=["2", 0]), "2": node("Neither")}) == []
    assert refused({"1": node("ComfyNotNode", value=["7", 0])}) == []


def test_a_switch_does_not_bring_text_into_a_list_of_files() -> None:
    """The attacks of a folder, a model and a picture by text: ComfyUI checks no list then."""
    text = {"1": node("PrimitiveString", value="/etc"), "2": switch(["1", 0])}
    for class_type, name in (
        ("LoadImageTextDataSetFromFolder", "folder"),
        ("DiffusersLoader", "model_path"),
        ("CheckpointLoaderSimple", "ckpt_name"),
        ("LoadImage", "image"),
        ("LoadAudio", "audio"),
        ("SplatToFile3D", "format"),
        ("SaveVideo", "codec"),
    ):
        document = text | {"3": node(class_type, "Load", **{name: ["2", 0]})}
        (problem,) = problems(document)
        assert (problem.code, problem.node_id, problem.input) == ("refused_input", "3", name)
        assert "what comes through node 2 is STRING" in problem.what
        assert "Write the value into the node." in problem.hint


def test_a_text_written_into_a_switch_is_no_choice_either() -> None:
    document = {"2": switch("../x"), "3": node("UNETLoader", unet_name=["2", 0])}
    assert refused(document) == [("refused_input", "3", "unet_name")]


def test_an_expression_and_a_format_take_plain_values_only() -> None:
    """Methods can be called on others, `a.numpy().tofile(path)`, and attributes lead anywhere."""
    for class_type in ("ComfyMathExpression", "StringFormat"):
        for source in ("1", "2"):
            document = IMAGE | {"2": switch(["1", 0])}
            document["3"] = node(class_type, **{"values.b": [source, 0]})
            assert refused(document) == [("refused_input", "3", "values.b")]
        document = {"1": node("PrimitiveInt", value=3), "2": switch(["1", 0])}
        document["3"] = node(class_type, **{"values.a": ["2", 0], "values.b": 4})
        assert refused(document) == []
        assert refused(IMAGE | {"3": node(class_type, **{"values.a": ["1", 0]})}) != []
        allowed = policy.load(allow=[class_type])
        assert refused(IMAGE | {"3": node(class_type, **{"values.a": ["1", 0]})}, allowed) == []


def test_no_class_washes_a_value_into_another_type() -> None:
    laundries = (
        node("PrimitiveInt", value=["2", 0]),
        node("PrimitiveString", value=["2", 0]),
        node("CustomCombo", choice=["2", 0]),
        node("Preview3D", model_file=["2", 0]),
    )
    for washing in laundries:
        document = IMAGE | {"2": switch(["1", 0]), "3": washing}
        ((code, node_id, _),) = refused(document)
        assert (code, node_id) == ("refused_input", "3")


def test_an_input_that_the_class_does_not_have_takes_no_connection() -> None:
    """CustomCombo takes everything, and gives its `index` on as a number, whatever it is."""
    document = IMAGE | {"2": node("CustomCombo", choice="x", index=["1", 0])}
    document["3"] = node("ComfyMathExpression", **{"values.a": ["2", 1]})
    assert refused(document) == [
        ("refused_input", "2", "index"),
        ("refused_input", "3", "values.a"),
    ]


@pytest.mark.parametrize("slot", [0, 0.0, True])
def test_a_list_that_reads_like_a_connection_is_none(slot: float) -> None:
    """ComfyUI takes the wrapper off, and then the list for a connection that nobody has judged."""
    document = IMAGE | {"2": node("PreviewAny", source={"__value__": ["1", slot]})}
    assert refused(document) == [("refused_input", "2", "source")]
    assert refused({"2": node("PreviewAny", source={"__value__": ["nowhere", 1.0]})}) != []
    assert refused({"2": node("PreviewAny", source={"__value__": ["a", "b"]})}) == []


def test_values_are_followed_through_any_number_of_switches_and_rings() -> None:
    chain = IMAGE | {"s0": switch(["1", 0])}
    for number in range(1, 3000):
        chain[f"s{number}"] = switch([f"s{number - 1}", 0])
    chain["end"] = node("PrimitiveInt", value=["s2999", 0])
    assert refused(chain) == [("refused_input", "end", "value")]
    ring = IMAGE | {
        "2": node("ComfySwitchNode", switch=True, on_true=["3", 0], on_false=["1", 0]),
        "3": node("CreateList", **{"inputs.input0": ["2", 0]}),
        "4": node("PrimitiveInt", value=["3", 0]),
    }
    assert refused(ring) == [("refused_input", "4", "value")]
    alone = {"2": switch(["2", 0]), "4": node("PrimitiveInt", value=["2", 0])}
    assert refused(alone) == []
    alone["5"] = node("StringFormat", f_string="", **{"values.a": ["2", 0]})
    assert refused(alone) == [("refused_input", "5", "values.a")]


def test_a_switch_counts_by_what_it_switches_and_not_by_its_condition() -> None:
    document = IMAGE | {"2": node("PrimitiveBoolean", value=True)}
    document["3"] = node("ComfySwitchNode", switch=["2", 0], on_true=["1", 0], on_false=["1", 0])
    document["4"] = node("SaveImage", images=["3", 0], filename_prefix="x")
    assert refused(document) == []
    document["5"] = node("PrimitiveBoolean", value=["3", 0])
    assert refused(document) == [("refused_input", "5", "value")]


@pytest.mark.parametrize(
    "literal", [True, 3, 3.5, "x", None, {"a": 1}], ids=lambda value: type(value).__name__
)
def test_what_stands_in_a_switch_is_a_plain_value(literal: Any) -> None:
    document = {"2": switch(literal), "3": node("PrimitiveFloat", value=["2", 0])}
    assert refused(document) == []


def test_no_switch_brings_what_would_not_be_taken_directly() -> None:
    """A picture as a camera would end the whole process: what a node reports must be JSON."""
    document = IMAGE | {"2": switch(["1", 0]), "3": node("Preview3D", model_file="")}
    document["3"]["inputs"]["camera_info"] = ["2", 0]
    assert refused(document) == [("refused_input", "3", "camera_info")]
    either = custom("Either", {}, "IMAGE,MASK")
    known = catalog_of(either)
    document = {"1": node("Either"), "2": switch(["1", 0])}
    document["3"] = node("SaveImage", images=["2", 0], filename_prefix="x")
    assert refused(document, known=known) == []
    document["4"] = node("StringFormat", f_string="", **{"values.a": ["2", 0]})
    assert refused(document, known=known) == [("refused_input", "4", "values.a")]


def test_a_switch_of_a_pack_is_followed_like_comfyuis_own() -> None:
    any_switch = custom("Any Switch", {"first": ["*", {}]}, "*")
    undeclared = custom("Any Switch (rgthree)", {}, "*")
    known = catalog_of({**any_switch, **undeclared})
    for class_type, name in (("Any Switch", "first"), ("Any Switch (rgthree)", "any_01")):
        document = IMAGE | {"2": node(class_type, **{name: ["1", 0]})}
        document["3"] = node("PrimitiveInt", value=["2", 0])
        assert refused(document, known=known) == [("refused_input", "3", "value")]


def test_what_a_pack_makes_may_go_where_it_fits() -> None:
    names = custom("Name of a model", {"ckpt": [["a", "b"], {}]}, ["a", "b"], "COMBO")
    anything = custom("Their sum", {"a": ["INT", {}]}, "*")
    known = catalog_of({**names, **anything})
    document = {
        "1": node("Name of a model", ckpt="a"),
        "2": switch(["1", 1]),
        "3": node("CheckpointLoaderSimple", ckpt_name=["1", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name=["2", 0]),
        "5": node("Their sum", a=1),
        "6": node("PrimitiveInt", value=["5", 0]),
        "7": node("CheckpointLoaderSimple", ckpt_name=["5", 0]),
    }
    assert refused(document, known=known) == []
    document["8"] = node("StringFormat", f_string="", **{"values.a": ["5", 0]})
    (problem,) = problems(document, known=known)
    assert "It is given a value of any type" in problem.what


def test_a_lists_own_choices_in_a_packs_node_are_the_packs_affair() -> None:
    known = catalog_of(custom("Theirs", {"mode": [["a", "b"], {}], "size": ["INT", {}]}, "IMAGE"))
    document = IMAGE | {"2": switch("a"), "3": node("Theirs", mode=["2", 0], size=["2", 0])}
    assert refused(document, known=known) == []


def test_a_link_that_comfyui_refuses_itself_is_told_once_by_the_check_of_the_graph() -> None:
    document = IMAGE | {"2": node("PrimitiveInt", value=["1", 0])}
    assert refused(document) == []


@cache
def templates() -> dict[str, Workflow]:
    """Every installed template that is a workflow of installed classes, converted."""
    found = {}
    for path in sorted(TEMPLATES.glob("*.json")):
        try:
            found[path.stem] = read_workflow(path.read_bytes(), catalog()).workflow
        except CallerError:
            continue
    return found


def test_the_templates_get_through_but_for_those_of_paid_services() -> None:
    """The list of all others that are refused: it is empty."""
    paid, others = [], {}
    for name, workflow in templates().items():
        found = policy.check(workflow, catalog(), DEFAULT)
        if found and all("paid services" in problem.what for problem in found):
            paid.append(name)
        elif found:
            others[name] = [str(problem) for problem in found]
    assert others == {}
    assert len(templates()) - len(paid) >= 220
    info = catalog().raw["object_info"]
    for name in paid:
        classes = {n.class_type for n in templates()[name].nodes.values()}
        assert any(info[c]["python_module"].startswith("comfy_api_nodes") for c in classes)


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_the_bundled_workflows_get_through(name: str) -> None:
    workflow = read_workflow(bundled(name), catalog()).workflow
    assert policy.check(workflow, catalog(), DEFAULT) == []


def test_the_table_names_classes_that_there_are() -> None:
    raw = policy.table()
    core = {
        name
        for name, entry in catalog().raw["object_info"].items()
        if not entry["python_module"].startswith("comfy_api_nodes")
    }
    named = [*raw["refused"], *raw["allowed"], *raw["plain"], *raw["hands_on"]]
    assert set(named) <= core
    assert not set(raw["refused"]) & set(raw["allowed"])
    for reason in raw["refused"].values():
        assert reason["why"].endswith(".")
        assert reason["instead"].endswith(".")


RISKY = {
    "os.environ": "environment",
    "os.getenv": "environment",
    "eval": "code",
    "exec": "code",
    "compile": "code",
    "__import__": "code",
    "simple_eval": "code",
    "importlib": "code",
    "ctypes.CDLL": "code",
    "pickle": "code",
    "torch.load": "pickle",
    "torch.save": "disk",
    "subprocess": "process",
    "os.system": "process",
    "requests": "network",
    "urllib": "network",
    "aiohttp": "network",
    "httpx": "network",
    "socket": "network",
    "open": "disk",
    "av.open": "disk",
    "os.listdir": "disk",
    "os.walk": "disk",
    "os.makedirs": "disk",
    "shutil": "disk",
    "tempfile": "disk",
    "save_file": "disk",
    "save_to": "disk",
}

LOOKED_AT = {
    "nodes": {"code", "disk"},
    "nodes_audio": {"disk"},
    "nodes_dataset": {"disk", "pickle"},
    "nodes_glsl": {"code", "environment"},
    "nodes_images": {"disk"},
    "nodes_load_3d": {"disk"},
    "nodes_lt": {"disk"},
    "nodes_math": {"code"},
    "nodes_painter": {"disk"},
    "nodes_sam3": {"disk"},
    "nodes_save_3d": {"disk"},
    "nodes_text": {"disk"},
    "nodes_train": {"disk"},
    "nodes_video": {"disk"},
}
"""Modules of ComfyUI's nodes to what they can reach: read class by class for the table."""


def reach(source: str) -> set[str]:
    """What a module calls or imports that leads out of it."""
    found = set()
    for part in ast.walk(ast.parse(source)):
        names: list[str] = []
        match part:
            case ast.Call(func=ast.Name(id=name)):
                names = [name]
            case ast.Attribute(attr="save_file" | "save_to" as name):
                names = [name]
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                names = [f"{owner}.{name}"]
            case ast.Import(names=imported):
                names = [alias.name.partition(".")[0] for alias in imported]
            case ast.ImportFrom(module=str(name)):
                names = [name.partition(".")[0]]
        found |= {RISKY[name] for name in names if name in RISKY}
    return found


def test_every_module_that_reaches_out_has_been_looked_at(comfyui_tree: Path) -> None:
    """Another ComfyUI with another list wants its classes read, and the table mended."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in [comfyui_tree / "nodes.py", *(comfyui_tree / "comfy_extras").glob("nodes_*.py")]:
        kinds = reach(path.read_text(encoding="utf-8"))
        if kinds:
            found[path.stem] = kinds
    assert found == LOOKED_AT
