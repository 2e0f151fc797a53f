"""Requests made from the server's own OpenAPI document, and others that it does not allow."""

import base64
import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from cog_server import PROJECT, READY, CogServer, settings
from graphs import picture
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from comfy_runner import errors
from comfy_runner.serving import schema
from comfy_runner.weights.store import WeightStore  # noqa: F401 - to have all errors known

Shape = Mapping[str, Any]

DOCUMENT = json.loads((PROJECT / schema.SCHEMA).read_text("utf-8"))
SHAPES: Mapping[str, Shape] = DOCUMENT["components"]["schemas"]
INPUTS: Mapping[str, Shape] = SHAPES["Input"]["properties"]
TINY = json.dumps(picture())
JSON = "application/json"
PATIENCE = 10.0
"""Seconds for the server to free its slot."""

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(-1e300, 1e300),  # larger ones are no JSON
    st.text(max_size=8),
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
TEXTS: Mapping[str, st.SearchStrategy[str]] = {
    "workflow_json": st.sampled_from(
        [
            *(
                TINY,
                TINY,
                TINY,
                "",
                "{}",
                "[]",
                "null",
                "{oops",
                "\0",
                "file:///etc/hostname",
                "data:,",
                "data:",
            ),
            *("http://127.0.0.1:1/a.json", "http://169.254.169.254/", "https://", "[" * 5000),
            '{"nodes": [], "links": [], "version": 0.4}',
            '{"1": {"class_type": "Nope", "inputs": {}}}',
        ]
    ),
    "inputs": JUNK.map(json.dumps) | st.sampled_from(["{}", '{"1.width": 9}', "http://[::1/"]),
}
FILES = st.text(max_size=8).map(lambda text: f"data:{text}") | st.sampled_from(
    [
        *("data:image/png;base64,Zm94", "data:,fox", "data:,", "data:", "data:;base64,a", "data:x"),
        *("http://127.0.0.1:1/a.png", "http://10.0.0.1/", "http://[::1", "https://\u2100/"),
        *("", "/etc/hostname", "file:///etc/hostname", "a.png", "\0", "x" * 5000, "ftp://a/b"),
        f"data:{JSON};base64,{base64.b64encode(TINY.encode()).decode()}",
    ]
)


KINDS = {"array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def resolved(shape: Shape) -> Shape:
    """The shape with what it refers to."""
    for part in [shape, *shape.get("allOf", ())]:
        if "$ref" in part:
            return {**SHAPES[part["$ref"].rpartition("/")[2]], **shape}
    return shape


def fitting(shape: Shape, name: str = "") -> st.SearchStrategy[Any]:
    """Values that the shape allows, at its limits above all."""
    values: st.SearchStrategy[Any]
    match resolved(shape):
        case {"enum": [*choices]}:
            values = st.sampled_from(choices)
        case {"type": "array", "items": items}:
            values = st.lists(fitting(items), max_size=3)
        case {"type": "string", "format": "uri"}:
            values = FILES
        case {"type": "string"}:
            values = TEXTS.get(name, st.text(max_size=12))
        case {"type": "integer", "minimum": low, **more}:
            high = more.get("maximum", 2**70)
            values = st.sampled_from([low, high, float(low)]) | st.integers(low, high)
        case {"type": "number", "minimum": low}:
            values = st.sampled_from([low, 1e300]) | st.floats(low, 1e6)
        case _:
            assert shape["type"] == "boolean", shape
            values = st.booleans()
    return values


def unfit(shape: Shape) -> st.SearchStrategy[Any]:
    """Values that the shape forbids; null, too, which coglet 0.23 takes nowhere."""
    shape = resolved(shape)
    others = JUNK.filter(lambda value: not is_a(value, KINDS[shape["type"]]))
    beyond = [
        shape[limit] + step for limit, step in (("minimum", -1), ("maximum", 1)) if limit in shape
    ]
    if "enum" in shape:
        return others | st.text(max_size=5).filter(lambda text: text not in shape["enum"])
    if shape["type"] == "array":
        return others | st.tuples(FILES, unfit(shape["items"])).map(list)
    return others | st.sampled_from(beyond) if beyond else others


def is_a(value: object, kind: Any) -> bool:
    """As JSON Schema sees it: a bool is no number, and 2.0 is an integer."""
    if kind is int and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def conforms(value: Any, shape: Shape) -> bool:
    """Whether an answer has the shape that the document promises."""
    match resolved(shape):
        case {"anyOf": [*shapes]}:
            return any(conforms(value, each) for each in shapes)
        case {"enum": [*choices]}:
            return value in choices
        case {"type": "array", "items": items}:
            return isinstance(value, list) and all(conforms(each, items) for each in value)
        case {"type": "object", **rest}:
            shapes = rest.get("properties", {})
            return (
                isinstance(value, dict)
                and value.keys() >= {*rest.get("required", ())}
                and all(conforms(value[key], shapes[key]) for key in value.keys() & shapes.keys())
            )
        case {"type": kind}:
            return is_a(value, KINDS[kind])
    return True


def names_below(kind: type) -> set[str]:
    return {kind.__name__}.union(*map(names_below, kind.__subclasses__()))


EXPECTED = {
    *names_below(errors.CallerError),
    *names_below(errors.RunError),
    "DownloadFailed",
    "TimedOut",  # of those that allow a second
}
"""Errors that a request may meet: whatever else comes is a fault of ours."""
TOLD = re.compile(r"Prediction failed: (?:Generator iteration error: )?(\w+): .")


class Served:
    """The served model, asked over a new connection each time."""

    def __init__(self, model: CogServer) -> None:
        self.model = model
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Connection"] = "close"

    def close(self) -> None:
        self._session.close()

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        """The answer. The slot of the request before is freed after its answer: 409 till then."""
        deadline = time.monotonic() + PATIENCE
        while True:
            url = self.model.base_url + path
            try:
                answer = self._session.request(method, url, timeout=60, **more)
            except requests.ConnectionError:
                # coglet 0.23 may answer and close before it has read a body of another type.
                if time.monotonic() > deadline:
                    raise
                continue
            if answer.status_code != 409 or time.monotonic() > deadline:
                return answer

    def check(self, answer: requests.Response) -> dict[str, Any]:
        """The answer's JSON, which is as the document says and tells of no fault of ours."""
        body: dict[str, Any] = answer.json()
        operation = DOCUMENT["paths"]["/predictions"]["post"]
        promised = operation["responses"][str(answer.status_code)]["content"][JSON]["schema"]
        assert conforms(body, promised), body
        if answer.status_code == 200:
            assert body["status"] in ("succeeded", "failed")
            assert ("error" in body) == (body["status"] == "failed")
            told = TOLD.match(body.get("error", ""))
            assert body["status"] == "succeeded" or (told and told[1] in EXPECTED), body
        assert "Traceback" not in "\n".join(self.model.log), body
        return body


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    comfyui_tree: Path,  # noqa: ARG001
) -> Iterator[Served]:
    """The shipped model. After all requests it is ready, and runs a workflow."""
    temporary = tmp_path_factory.mktemp("temporary")
    # A pack with faults would have its own errors in the log.
    environment = settings(
        tmp_path_factory.mktemp("home"),
        TMPDIR=str(temporary),
        COMFY_RUNNER_CUSTOM_NODES=str(temporary / "none"),
        COMFY_RUNNER_RUN_TIMEOUT="60",
    )
    with CogServer(PROJECT, environment) as model:
        model.wait_ready(READY)
        served = Served(model)
        try:
            yield served
            assert model.wait_ready(30)["status"] == "READY"
            last = model.predict({"workflow_json": TINY})
            assert last.body["status"] == "succeeded", last.body
            assert [path.name for path in temporary.iterdir() if path.name.startswith("tmp")] == []
        finally:
            served.close()


def bounded(examples: int) -> Any:
    """The same requests each time, and no shrinking: each is a prediction."""
    return effort(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


NUMBERS = itertools.count()
VALUES = st.fixed_dictionaries(
    {"workflow_json": TEXTS["workflow_json"]},
    optional={
        name: fitting(shape, name) for name, shape in INPUTS.items() if name != "workflow_json"
    },
)


@bounded(400)
@given(VALUES, st.sampled_from(["POST /predictions", "PUT /predictions/", "POST /trainings"]))
@example({"workflow_json": TINY, "seed": 2.0, "output_quality": 0.0}, "POST /predictions")
@example({"workflow_json": TINY, "timeout": 1e300}, "POST /predictions")
def test_what_the_document_allows_is_answered_as_it_says(
    served: Served, values: dict[str, Any], operation: str
) -> None:
    method, _, path = operation.partition(" ")
    # The same id once more might be answered with the state of the one before.
    path += f"fuzz-{next(NUMBERS)}" if path.endswith("/") else ""
    answer = served.ask(method, path, json={"input": values})
    assert answer.status_code == 200, answer.text
    served.check(answer)


@bounded(200)
@given(VALUES, st.data())
def test_what_the_document_forbids_is_refused_by_name(
    served: Served, values: dict[str, Any], draw: st.DataObject
) -> None:
    name = draw.draw(st.sampled_from([*INPUTS]))
    given = {**values, name: draw.draw(unfit(INPUTS[name]))}
    answer = served.ask("POST", "/predictions", json={"input": given})
    assert answer.status_code == 422, (given, answer.text)
    problems = served.check(answer)["detail"]
    assert {problem["loc"][2].partition("/")[0] for problem in problems} == {name}


IDS = st.text("abcXYZ019-_.~ %é\u2028", min_size=1, max_size=12).filter(lambda t: t.strip(". "))
"""Ids that can be the name of a folder: Cog 0.23 makes one, whatever the id."""


@bounded(100)
@given(
    st.dictionaries(st.text(max_size=6).filter(lambda key: key not in INPUTS), JUNK, max_size=3),
    st.fixed_dictionaries({}, optional={"id": IDS, "nonsense": JUNK}),
)
def test_keys_that_nobody_knows_change_nothing(
    served: Served, more: dict[str, Any], around: dict[str, Any]
) -> None:
    body = {**around, "input": {**more, "workflow_json": "{}"}}
    told = served.check(served.ask("POST", "/predictions", json=body))
    assert "The workflow has no nodes." in told["error"]
    assert told["id"] == around.get("id", told["id"])


BODIES = st.one_of(
    st.binary(max_size=30),
    JUNK.filter(lambda body: not isinstance(body, dict)).map(json.dumps).map(str.encode),
    st.sampled_from(
        [
            *(b"", b"{", b'{"input": {}', b'{"input": {}}x', b'\xff\xfe{"input": {}}', b"[" * 5000),
            *(b'{"input": {"seed": 1e999}}', b'{"input": {"seed": NaN}}', b'{"webhook": 3}'),
            *(b'{"input": {"inputs": "\\ud83d"}}', b'{"input": [], "id": 3}'),
            b'{"input": {}, "input": {}}',
        ]
    ),
)


@bounded(200)
@given(BODIES, st.sampled_from([JSON, f"{JSON}; charset=utf-16", "text/plain", "*/*", ""]))
@example(b'{"input": {"workflow_json": "{}"}}', "multipart/form-data; boundary=x")
@example(b"{}", "application/x-www-form-urlencoded")
def test_no_other_body_is_the_servers_fault(served: Served, content: bytes, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = served.ask("POST", "/predictions", data=content, headers=headers)
    # coglet 0.23 answers more than its document says: 400 for no JSON, 415 for another type.
    assert answer.status_code in (200, 400, 415, 422), answer.text
    if answer.headers["Content-Type"] == JSON:
        served.check(answer)


PATHS = ["/", "/health-check", "/openapi.json", "/predictions", "/predictions/x", "/docs", "/nope"]


@pytest.mark.parametrize(
    "path", [*PATHS, "/predictions/x/cancel", "/trainings/x/cancel", "//", "/%00"]
)
def test_no_method_and_no_path_is_the_servers_fault(served: Served, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FOX"):
        answer = served.ask(method, path, json={"input": {}})
        assert answer.status_code in (200, 404, 405), (method, path, answer.text)
        if answer.status_code == 200 and answer.content:
            assert isinstance(answer.json(), dict)


@bounded(40)
@given(IDS)
def test_a_cancel_of_what_is_not_there_does_nothing(served: Served, prediction: str) -> None:
    path = f"/predictions/{requests.utils.quote(prediction, safe='')}/cancel"
    answer = served.ask("POST", path)
    assert (answer.status_code, answer.json()) == (404, {})
