"""What the generated schema says, against Cog's own generator and Cog's own server."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cog_server import CogServer
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.serving import schema

PROJECT = Path(__file__).resolve().parent.parent
ORACLE = Path(__file__).resolve().parent / "fixtures" / "cog_schema"
CASES = sorted(path.stem for path in ORACLE.glob("*.py") if path.stem != "predict")

HEAD = """
from typing import Any, Dict, Iterator, List, Optional, Union
import os
import cog
from cog import ConcatenateIterator, File, Input, Path, Secret
from constants import IMPORTED
ONE = ["a", "b"]
TWICE = ["a"]
TWICE += ["b"]
WRAPPED = ("text")
PARTIAL = {"a": 1, **{"b": 2}}
COMPUTED = ONE + ["c"]
WRAPPED_DICT = ({"a": 1})
"""


def predictor(parameters: str, returns: str = "str", decorator: str = "") -> str:
    """The text of a predict.py whose `run` has these parameters after self."""
    head = f"    {decorator}\n" if decorator else ""
    method = f"    def run(self, {parameters}) -> {returns}:\n        pass\n"
    return f"{HEAD}\n\nclass Predictor:\n{head}{method}"


def problems(source: str) -> list[tuple[str, str]]:
    """Code and parameter of everything that is wrong with a source."""
    with pytest.raises(InvalidInput) as caught:
        schema.generate(source)
    return [(problem.code, problem.input) for problem in caught.value.problems]


def inputs(document: schema.Json) -> schema.Json:
    found: schema.Json = document["components"]["schemas"]["Input"]["properties"]
    return found


# Against documents that Cog's command line wrote


def test_the_document_is_the_one_that_cog_writes() -> None:
    expected = (ORACLE / "openapi_schema.json").read_text("utf-8")
    made = schema.generate((ORACLE / "predict.py").read_text("utf-8"))
    assert made == json.loads(expected)
    assert schema.dumps(made) == expected


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_input_and_output_comes_out_byte_for_byte_as_from_cog(case: str) -> None:
    made = schema.generate((ORACLE / f"{case}.py").read_text("utf-8"))
    assert schema.dumps(made) == (ORACLE / f"{case}.json").read_text("utf-8")


@pytest.mark.skipif(shutil.which("cog") is None, reason="Cog's command line is not on PATH")
def test_the_command_line_on_this_machine_writes_the_same(tmp_path: Path) -> None:
    shutil.copy(ORACLE / "predict.py", tmp_path)
    shutil.copy(ORACLE / "cog.yaml", tmp_path)
    (tmp_path / "requirements.txt").touch()
    with HTTPServer(("127.0.0.1", 0), NoDocker) as docker:
        thread = threading.Thread(target=docker.serve_forever, args=(0.05,))
        thread.start()
        try:
            built = subprocess.run(
                ["cog", "build"],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "DOCKER_HOST": f"tcp://127.0.0.1:{docker.server_port}",
                    "COG_NO_UPDATE_CHECK": "1",
                    "HOME": str(tmp_path),
                },
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            docker.shutdown()
            thread.join()
    written = tmp_path / schema.SCHEMA
    assert written.exists(), built.stderr
    by_cog = json.loads(written.read_text("utf-8"))
    by_us = schema.generate((ORACLE / "predict.py").read_text("utf-8"))
    # The version there is that of the command line.
    assert by_cog | {"info": None} == by_us | {"info": None}


class NoDocker(BaseHTTPRequestHandler):
    """A Docker engine that answers a ping and fails at everything else.

    `cog build` writes the schema between the two.
    """

    def answer(self) -> None:
        self.send_response(200 if self.path.endswith("/_ping") else 500)
        self.send_header("Api-Version", "1.47")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET = do_POST = answer  # noqa: N815  # http.server's names

    def log_message(self, *_: object) -> None:
        pass


# What Cog refuses, drops or garbles


@pytest.mark.parametrize(
    ("parameter", "code"),
    [
        ("x=1", "missing_annotation"),
        ("x", "missing_annotation"),
        ("*x: int", "star_parameter"),
        ("**x: int", "star_parameter"),
        ("größe: int", "bad_name"),
        # annotations
        ("x: Path | None | str", "unsupported_type"),
        ("x: Union[Secret, str]", "unsupported_type"),
        ("x: int | list[File]", "unsupported_type"),
        ("x: Optional[int] | str", "unsupported_type"),
        ("x: list[list[int]]", "unsupported_type"),
        ("x: list[int | str]", "unsupported_type"),
        ("x: list[Optional[int]]", "unsupported_type"),
        ("x: list", "unsupported_type"),
        ("x: Any", "unsupported_type"),
        ("x: tuple[int, int]", "unsupported_type"),
        ("x: bytes", "unsupported_type"),
        ("x: None", "unsupported_type"),
        ("x: 'int'", "unsupported_type"),
        ("x: (int)", "parentheses"),
        ("x: int | (str | float)", "unsupported_type"),
        ("x: Union[int | None, None]", "unsupported_type"),
        ("x: Union[Optional[int | str], None]", "unsupported_type"),
        ("x: Optional[(int)]", "unreadable_annotation"),
        ("x: Optional [int]", "unreadable_annotation"),
        ("x: Optional[\n        int\n    ]", "unreadable_annotation"),
        # defaults that Cog drops, so that the input becomes required or null
        ("x: Optional[int] = Input(default=2**32 - 1)", "not_literal"),
        ("x: int = Input(default=1 << 20)", "not_literal"),
        ("x: str = Input(default=IMPORTED)", "not_literal"),
        ("x: str = Input(default=os.environ['X'])", "not_literal"),
        ("x: str = Input(default=f'a')", "not_literal"),
        ("x: list[int] = Input(default=(1, 2))", "not_literal"),
        ("x: int = Input(default=- 1)", "not_literal"),
        ("x: int = Input(default=-(1))", "not_literal"),
        ("x: bool = Input(default=-True)", "not_literal"),
        ("x: int = Input(default=(1))", "parentheses"),
        ("x: int = Input(default=(  # why\n    1))", "parentheses"),
        ("x: list[str] = Input(default=['a', ('b')])", "parentheses"),
        ("x: list[str] = Input(default=['a',  # why\n    'b'])", "comment_in_list"),
        ("x: dict = Input(default={**ONE})", "not_literal"),
        ("x: dict = Input(default={1: 'a'})", "not_literal"),
        ("x: int = Input(default=18446744073709551615)", "number_too_large"),
        ("x: float = Input(default=1e400)", "number_too_large"),
        ("x: Path = Input(default=None)", "none_default"),
        ("x: int = Input(default=None)", "none_default"),
        ("x: int = Input(1)", "unnamed_setting"),
        ("x: int = cog.Input(default=1)", "not_literal"),
        ("x: list = Input(default_factory=list)", "unsupported_type"),
        ("x: list[int] = Input(default_factory=list)", "unknown_setting"),
        ("x: int = Input(**{'default': 1})", "unknown_setting"),
        # text that Cog garbles or drops
        ("x: str = Input(description='one ' 'two')", "garbled_string"),
        ("x: str = Input(description='one\\ntwo')", "garbled_string"),
        ("x: str = Input(description='it\\'s')", "garbled_string"),
        ("x: str = Input(description=r'''raw''')", "garbled_string"),
        ("x: str = Input(description=u'old')", "garbled_string"),
        ("x: str = Input(description=('long'))", "parentheses"),
        ("x: str = Input(description=WRAPPED)", "parentheses"),
        ("x: str = Input(description='one ' + 'two')", "not_literal"),
        ("x: str = Input(description=IMPORTED)", "not_literal"),
        ("x: str = Input(regex=WRAPPED)", "not_literal"),
        ("x: str = Input(deprecated=ONE)", "not_literal"),
        # limits
        ("x: int = Input(le=2**32)", "not_literal"),
        ("x: int = Input(ge=0x10)", "not_literal"),
        ("x: int = Input(ge='1')", "not_literal"),
        ("x: int = Input(le=18446744073709551615)", "number_too_large"),
        ("x: int = Input(le=9007199254740993)", "number_too_large"),
        ("x: str = Input(min_length=-1)", "bad_length"),
        ("x: str = Input(max_length=1.5)", "bad_length"),
        # settings without effect
        ("x: str = Input(ge=1)", "useless_setting"),
        ("x: list[int] = Input(ge=1)", "useless_setting"),
        ("x: int | float = Input(ge=1)", "useless_setting"),
        ("x: int = Input(regex='a')", "useless_setting"),
        ("x: str = Input(accept='image/*')", "useless_setting"),
        ("x: list[str] = Input(choices=['a'])", "useless_setting"),
        # choices
        ("x: str = Input(choices=IMPORTED)", "not_literal"),
        ("x: str = Input(choices=TWICE)", "not_literal"),
        ("x: str = Input(choices=COMPUTED)", "not_literal"),
        ("x: str = Input(choices=('a', 'b'))", "not_literal"),
        ("x: str = Input(choices=sorted(ONE))", "not_literal"),
        ("x: str = Input(choices=[*ONE])", "not_literal"),
        ("x: str = Input(choices=[c for c in ONE])", "not_literal"),
        ("x: str = Input(choices=list(PARTIAL.keys()))", "not_literal"),
        ("x: str = Input(choices=list(ONE.keys()))", "not_literal"),
        ("x: str = Input(choices=(ONE) + ['c'])", "parentheses"),
        ("x: str = Input(choices=list(WRAPPED_DICT.keys()))", "parentheses"),
        ("x: str = Input(choices=['a',  # first\n    'b'])", "comment_in_list"),
        ("x: str = Input(choices=None)", "not_literal"),
        ("x: str = Input(choices=[])", "bad_choice"),
        ("x: str = Input(choices=[1, 2])", "bad_choice"),
        ("x: str = Input(choices=['a', 'a'])", "bad_choice"),
        ("Status: str = Input(choices=['a'])", "bad_name"),
        # defaults that the server would refuse if a caller sent them
        ("x: int = Input(default='1')", "bad_default"),
        ("x: int = Input(default=True)", "bad_default"),
        ("x: list[int] = ['a']", "bad_default"),
        ("x: int = Input(ge=1, default=0)", "bad_default"),
        ("x: str = Input(choices=ONE, default='c')", "bad_default"),
    ],
)
def test_what_cog_would_get_wrong_is_an_error_at_its_parameter(parameter: str, code: str) -> None:
    name = parameter.lstrip("*").split(":")[0].split("=")[0]
    assert problems(predictor(parameter)) == [(code, name)]


@pytest.mark.parametrize(
    ("returns", "decorator", "code"),
    [
        ("None", "", "unsupported_output"),
        ("Optional[str]", "", "unsupported_output"),
        ("str | int", "", "unsupported_output"),
        ("tuple[str, int]", "", "unsupported_output"),
        ("dict[str]", "", "unsupported_output"),
        ("Iterator", "", "unsupported_output"),
        ("Generator[str]", "", "unsupported_output"),
        ("ConcatenateIterator[Path]", "", "unsupported_output"),
        ("'str'", "", "unsupported_output"),
        ("(str)", "", "parentheses"),
        ("str", "@cog.streaming", "streaming_without_iterator"),
        ("Iterator[str]", "@streaming", "unknown_streaming"),
        ("Iterator[str]", "@os.streaming", "unknown_streaming"),
        ("Iterator[str]", "@os.path.streaming", "unknown_streaming"),
        ("Iterator[str]", "@(cog.streaming)", "parentheses"),
        ("Iterator[str]", "@cog.concurrent(max=4)", "concurrent"),
    ],
)
def test_an_output_or_decorator_that_cog_gets_wrong_is_an_error(
    returns: str, decorator: str, code: str
) -> None:
    assert problems(predictor("x: int", returns, decorator)) == [(code, "")]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("class Predictor:\n    def run(self, x: int): ...", "missing_return_type"),
        ("class Predictor:\n    def run(this, x: int) -> str: ...", "no_self"),
        ("class Predictor:\n    def run(self: object, x: int) -> str: ...", "no_self"),
        ("class Predictor:\n    def run(self, x: int, /) -> str: ...", "positional_only"),
        ("class Predictor:\n    def setup(self) -> None: ...", "method_not_found"),
        (
            "class Predictor:\n    def run(self) -> str: ...\n    def predict(self) -> str: ...",
            "method_conflict",
        ),
        ("class Other:\n    def run(self) -> str: ...\nPredictor = Other", "class_not_found"),
        ("if True:\n    class Predictor:\n        def run(self) -> str: ...", "class_not_found"),
        ("class Predictor(:", "syntax_error"),
    ],
)
def test_a_class_that_cog_cannot_read_is_an_error(source: str, code: str) -> None:
    assert problems(source) == [(code, "")]


def test_all_problems_come_at_once_in_the_order_of_the_file_and_with_a_cure() -> None:
    source = predictor(
        "a, b: bytes, c: int = Input(ge=N, le=M, default=1), *, d: str = Input(default=X)",
        returns="None",
    )
    with pytest.raises(InvalidInput) as caught:
        schema.generate(source)
    found = caught.value.problems
    assert [problem.input for problem in found] == ["a", "b", "c", "c", "d", ""]
    assert all(problem.hint for problem in found)


@settings(deadline=None, max_examples=200)
@given(st.text() | st.integers() | st.floats() | st.lists(st.text(max_size=3), max_size=3))
def test_a_default_comes_out_as_python_sees_it_or_not_at_all(value: object) -> None:
    kind = {str: "str", int: "int", float: "float", list: "list[str]"}[type(value)]
    try:
        made = schema.generate(predictor(f"x: {kind} = Input(default={value!r})"))
    except InvalidInput:
        return
    default = inputs(json.loads(schema.dumps(made)))["x"]["default"]
    # Cog writes a float without a fraction as an integer, rounded as only a float can be.
    assert (float(default) if isinstance(value, float) else default) == value


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False)))
def test_what_is_written_reads_back_the_same(values: dict[str, str | float]) -> None:
    read = json.loads(schema.dumps(values), parse_int=float)
    assert read == values


def test_unusual_characters_earlier_in_a_line_or_file_hide_nothing() -> None:
    odd = "x: str = Input(description='\u00fc\u2028\x0c'), y: str = Input(description='\u00fc')"
    assert inputs(schema.generate(predictor(odd)))["x"]["description"] == "\u00fc\u2028\x0c"
    assert problems(predictor(f"{odd}, z: int = (1)")) == [("parentheses", "z")]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_any_line_ends_will_do(end: str) -> None:
    source = predictor("x: int = Input(description='ü', default=3), y: int = (1)")
    assert problems(source.replace("\n", end)) == [("parentheses", "y")]
    source = source.replace("(1)", "1")
    assert schema.generate(source.replace("\n", end)) == schema.generate(source)


def test_the_file_is_only_read_never_run() -> None:
    made = schema.generate("raise SystemExit(1)\n" + predictor("x: int = 3"))
    assert inputs(made)["x"]["default"] == 3


def test_another_class_of_the_file_can_be_named() -> None:
    source = predictor("x: int").replace("class Predictor", "class Other")
    assert list(inputs(schema.generate(source, "Other"))) == ["x"]


# The file in the project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the oracle's predict.py and cog.yaml, and the file that it yields."""
    for name in ("predict.py", "cog.yaml"):
        shutil.copy(ORACLE / name, tmp_path)
    (tmp_path / "x.png").write_bytes(b"picture")
    return tmp_path


def test_write_makes_the_file_that_the_server_reads_and_nothing_else(project: Path) -> None:
    path = schema.write(project)
    assert path == project / ".cog" / "openapi_schema.json"
    assert path.read_bytes() == (ORACLE / "openapi_schema.json").read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_a_schema_is_current_until_the_inputs_change(project: Path) -> None:
    assert not schema.is_current(project)
    path = schema.write(project)
    assert schema.is_current(project)
    path.write_text(path.read_text("utf-8").replace('"dev"', '"0.23.1"'), "utf-8")
    assert schema.is_current(project)
    source = (project / "predict.py").read_text("utf-8")
    (project / "predict.py").write_text(source.replace("le=50", "le=60"), "utf-8")
    assert not schema.is_current(project)
    path.write_text("{", "utf-8")
    assert not schema.is_current(project)


def test_a_predictor_that_makes_no_schema_leaves_the_old_file_alone(project: Path) -> None:
    path = schema.write(project)
    before = path.read_bytes()
    (project / "predict.py").write_text(predictor("x"), "utf-8")
    with pytest.raises(InvalidInput, match="input x"):
        schema.write(project)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("build: {}", "no class"),
        ("run: predict.py", "no class"),
        ("run: a.py:A\npredict: a.py:A", "both"),
        ("run: predict.py:Predictor\ntrain: train.py:train", "train.py"),
        ("run: missing.py:Predictor", "missing.py"),
        ("run: [", "cog.yaml"),
    ],
)
def test_a_cog_yaml_without_one_readable_class_is_an_error(
    project: Path, text: str, said: str
) -> None:
    (project / "cog.yaml").write_text(text, "utf-8")
    with pytest.raises(InvalidInput, match=said):
        schema.write(project)


def test_a_training_is_added_as_cog_adds_it(project: Path) -> None:
    shutil.copy(ORACLE / "training" / "train.py", project)
    text = 'run: "predict.py:Predictor"\ntrain: "train.py:train"\n'
    (project / "cog.yaml").write_text(text, "utf-8")
    made = json.loads(schema.write(project).read_bytes())
    expected = json.loads((ORACLE / "training" / "openapi_schema.json").read_bytes())
    for part in (lambda document: document["components"]["schemas"], lambda d: d["paths"]):
        added = part(made).keys() - part(schema.generate(predictor("x: str"))).keys()
        trained = {key for key in part(expected) if "rain" in key}
        assert trained <= added
        assert {key: part(made)[key] for key in trained} == {
            key: part(expected)[key] for key in trained
        }
    assert schema.is_current(project)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "There are 0 functions train"),
        ("def train(x: str) -> str: ...", "It does not return a BaseModel"),
        ("def train(x) -> str: ...", "input x: It has no annotation"),
        ("class M(BaseModel):\n    a: str = 1\ndef train() -> M: ...", "more than fields"),
        ("class M(BaseModel):\n    a: Foo\ndef train() -> M: ...", "no such type for an output"),
    ],
)
def test_a_training_that_cog_cannot_read_is_an_error(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        schema.generate_training(text)


def test_the_committed_schema_says_what_predict_py_says() -> None:
    assert schema.is_current(PROJECT), (
        f"{schema.SCHEMA} and predict.py have parted ways: run `comfy-runner schema`."
    )


# Against Cog's real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    project = tmp_path_factory.mktemp("served")
    for name in ("predict.py", "cog.yaml"):
        shutil.copy(ORACLE / name, project)
    (project / "x.png").write_bytes(b"picture")
    schema.write(project)
    with CogServer(project) as running:
        running.wait_ready(60)
        yield running


PICTURE = "data:image/png;base64,cGljdHVyZQ=="


def test_the_server_shows_the_schema_that_we_wrote(server: CogServer) -> None:
    assert server.get("/openapi.json") == json.loads(
        (ORACLE / "openapi_schema.json").read_text("utf-8")
    )


def test_a_prediction_with_the_required_input_only_succeeds(server: CogServer) -> None:
    reply = server.predict({"prompt": "a cat"})
    assert (reply.status, reply.body["status"]) == (200, "succeeded"), reply.body
    assert reply.body["output"] == [PICTURE]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 51),
        ("steps", "many"),
        ("cfg", -0.5),
        ("sampler", "unknown"),
        ("size", "large"),
        ("tiled", "yes"),
        ("image", 7),
        ("files", "no list"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_input(
    server: CogServer, name: str, value: object
) -> None:
    reply = server.predict({"prompt": "a cat", name: value})
    assert reply.status == 422
    assert [problem["loc"][-1] for problem in reply.body["detail"]] == [name]


def test_a_missing_input_is_refused_by_name(server: CogServer) -> None:
    reply = server.predict({})
    assert reply.status == 422
    assert [problem["loc"][-1] for problem in reply.body["detail"]] == ["prompt"]


def test_outputs_are_streamed(server: CogServer) -> None:
    events = list(server.stream({"prompt": "a cat"}))
    assert [name for name, _ in events if name != "log"] == ["start", "output", "completed"]
    assert dict(events)["output"] == {"chunk": PICTURE, "index": 0}
    assert dict(events)["completed"]["status"] == "succeeded"
