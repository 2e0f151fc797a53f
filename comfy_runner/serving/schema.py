"""The OpenAPI document that Cog's command line would write for predict.py, from its text alone.

Cog's HTTP server takes everything it knows about inputs and outputs from
`.cog/openapi_schema.json`, and only Cog's command line (a Go program) writes that file. This
module writes the same file without it: the document is that of `pkg/schema/openapi_spec.go` in
replicate/cog at commit 6110c912 (0.22.0, the last before 0.23.0), in the JSON of Go.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.serving.signature import Parameter, Type, read, read_training

Json = dict[str, Any]

SCHEMA = Path(".cog", "openapi_schema.json")
"""Where Cog's server looks for the document, seen from the project folder."""

_SCALARS: Mapping[str, Json] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "Path": {"type": "string", "format": "uri"},
    "File": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
_ARRAYS: Mapping[str, Json] = {
    "list": {},
    "Iterator": {"x-cog-array-type": "iterator"},
    "ConcatenateIterator": {"x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"},
}
_KEYS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
    "accept": "x-cog-accept",
}
"""What the arguments of `Input` are called in a schema, where not the same."""
_COMPONENTS = """{
"PredictionRequest": {"properties": {"id": {"title": "Id", "type": "string"},
  "input": {"$ref": "#/components/schemas/Input"}}, "title": "PredictionRequest", "type": "object"},
"PredictionResponse": {"properties": {
  "completed_at": {"format": "date-time", "title": "Completed At", "type": "string"},
  "created_at": {"format": "date-time", "title": "Created At", "type": "string"},
  "error": {"title": "Error", "type": "string"}, "id": {"title": "Id", "type": "string"},
  "input": {"$ref": "#/components/schemas/Input"}, "logs": {"title": "Logs", "type": "string"},
  "metrics": {"title": "Metrics", "type": "object"},
  "output": {"$ref": "#/components/schemas/Output"},
  "started_at": {"format": "date-time", "title": "Started At", "type": "string"},
  "status": {"title": "Status", "type": "string"}, "version": {"title": "Version",
  "type": "string"}}, "title": "PredictionResponse", "type": "object"},
"Status": {"description": "An enumeration.", "enum": ["starting", "processing", "succeeded",
  "canceled", "failed"], "title": "Status", "type": "string"},
"HTTPValidationError": {"properties": {"detail": {
  "items": {"$ref": "#/components/schemas/ValidationError"}, "title": "Detail", "type": "array"}},
  "title": "HTTPValidationError", "type": "object"},
"ValidationError": {"properties": {"loc": {"items": {"anyOf": [{"type": "string"},
  {"type": "integer"}]}, "title": "Location", "type": "array"},
  "msg": {"title": "Message", "type": "string"}, "type": {"title": "Error Type", "type": "string"}},
  "required": ["loc", "msg", "type"], "title": "ValidationError", "type": "object"}
}"""
"""The components that are the same for every class, after its own; key order is Cog's."""
_PATHS = """{
"/": {"get": {"operationId": "root__get", "responses": {"200": {
  "content": {"application/json": {"schema": {}}}, "description": "Successful Response"}},
  "summary": "Root"}},
"/health-check": {"get": {"operationId": "healthcheck_health_check_get", "responses": {"200": {
  "content": {"application/json": {"schema": {}}}, "description": "Successful Response"}},
  "summary": "Healthcheck"}},
"/predictions": {"post": {"description": "Run a single prediction on the model",
  "operationId": "predict_predictions_post", "requestBody": {"content": {"application/json": {
    "schema": {"$ref": "#/components/schemas/PredictionRequest"}}}},
  "responses": {"200": {"content": {"application/json": {
    "schema": {"$ref": "#/components/schemas/PredictionResponse"}}},
    "description": "Successful Response"}, "422": {"content": {"application/json": {
    "schema": {"$ref": "#/components/schemas/HTTPValidationError"}}},
    "description": "Validation Error"}}, "summary": "Predict"}},
"/predictions/{prediction_id}/cancel": {"post": {
  "operationId": "cancel_predictions__prediction_id__cancel_post",
  "parameters": [{"in": "path", "name": "prediction_id", "required": true,
    "schema": {"title": "Prediction Id", "type": "string"}}],
  "responses": {"200": {"content": {"application/json": {"schema": {}}},
    "description": "Successful Response"}, "422": {"content": {"application/json": {
    "schema": {"$ref": "#/components/schemas/HTTPValidationError"}}},
    "description": "Validation Error"}}, "summary": "Cancel"}}
}"""
"""The paths, the same for every class but for `x-cog-streaming`."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[^,\]}]*')
_PLAIN_FROM, _PLAIN_TO = 1e-6, 1e21


def generate(source: str, class_name: str = "Predictor") -> Json:
    """The OpenAPI document for the text of a predict.py, with its keys in Cog's order.

    `class_name` names the class in `source` whose `run` (or `predict`) is described.

    Raises: `InvalidInput` with everything that Cog refuses, drops or garbles; `Problem.input` is
    the name of the parameter, empty for what concerns the method or the file.
    """
    signature = read(source, class_name)
    inputs, enums = _inputs(signature.parameters, "Input")
    paths = json.loads(_PATHS)
    if signature.streaming:
        paths["/predictions"]["post"]["x-cog-streaming"] = True
    own = {
        "Input": inputs,
        "Output": _by_key({**_shape(signature.output), "title": "Output"}),
    }
    return {
        "components": {"schemas": {**own, **enums, **json.loads(_COMPONENTS)}},
        "info": {"title": "Cog", "version": "dev"},
        "openapi": "3.0.2",
        "paths": paths,
    }


def generate_training(source: str, name: str = "train") -> Json:
    """The part of the document that the text of a train.py adds: `components` and `paths`.

    `name` names the function in `source` that is described.

    Raises: as `generate`.
    """
    training = read_training(source, name)
    inputs, enums = _inputs(training.parameters, "TrainingInput")
    fields = {
        key: _by_key({**_shape(kind), "title": _title(key)})
        for key, kind in training.output.items()
    }
    output = {"properties": fields, "required": [*fields], "title": "Output", "type": "object"}
    # Cog makes them of the same words, its ids of small ones.
    words = (
        ("PredictionRe", "TrainingRe"),
        ("predict_predictions", "train_trainings"),
        ("prediction", "training"),
        ('"Predict"', '"Train"'),
        ("Prediction Id", "Training Id"),
        ("schemas/Input", "schemas/TrainingInput"),
        ("schemas/Output", "schemas/TrainingOutput"),
    )
    texts = [_COMPONENTS, _PATHS]
    for word, other in words:
        texts = [text.replace(word, other) for text in texts]
    components, paths = map(json.loads, texts)
    own = {"TrainingInput": inputs, "TrainingOutput": output}
    return {"components": {"schemas": {**own, **enums, **components}}, "paths": paths}


def _inputs(parameters: Sequence[Parameter], title: str) -> tuple[Json, Json]:
    """The schema of all inputs together, and those of their choices."""
    properties, enums, required = {}, {}, []
    for order, parameter in enumerate(parameters):
        name, kind, said = parameter.name, parameter.type, parameter.settings
        shape = {**_shape(kind), "title": _title(name)}
        if "choices" in said:
            shape = {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
            enums[name] = {
                "description": "An enumeration.",
                "enum": said["choices"],
                "title": name,
                "type": _SCALARS[kind.name]["type"],
            }
        if kind.nullable:
            shape["nullable"] = True
        if "default" not in said and (not kind.nullable or kind.name == "Union"):
            required.append(name)
        for key in said.keys() - {"choices"}:
            shape[_KEYS.get(key, key)] = said[key]
        if not shape.get("deprecated", True):
            del shape["deprecated"]
        properties[name] = _by_key({**shape, "x-order": order})
    inputs: Json = {"properties": properties, "required": required, "title": title}
    if not required:
        del inputs["required"]
    return {**inputs, "type": "object"}, enums


def _title(name: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in name.split("_"))


def dumps(schema: Mapping[str, Any]) -> str:
    """The text of the file, byte for byte as Cog's command line writes it, without a newline.

    Only `info.version` may differ: a released command line puts its own version there.
    """
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return _TOKEN.sub(_as_go, text)


def write(project: Path) -> Path:
    """Writes `.cog/openapi_schema.json` of a project folder; returns its path.

    The file is complete or untouched. Raises: `InvalidInput`.
    """
    text = dumps(_of_project(project))
    target = project / SCHEMA
    target.parent.mkdir(exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def is_current(project: Path) -> bool:
    """Whether `.cog/openapi_schema.json` says what predict.py says; False when there is none.

    A file written by any version of Cog's command line counts as well as our own.

    Raises: `InvalidInput` for a predict.py or cog.yaml that no schema can be made of.
    """
    expected = _of_project(project)
    try:
        present = json.loads((project / SCHEMA).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(present, dict) and {**present, "info": None} == {**expected, "info": None}


def _of_project(project: Path) -> Json:
    """The document for what `run:` (or the older `predict:`) names in cog.yaml, and `train:`."""
    name = "cog.yaml"
    try:
        settings = yaml.safe_load((project / name).read_bytes())
        match settings:
            case {"run": _, "predict": _}:
                what = "cog.yaml has both run: and predict:, which Cog refuses."
            case {"run": str(reference)} | {"predict": str(reference)} if ":" in reference:
                name, _, class_name = reference.partition(":")
                found = generate((project / name).read_bytes().decode(), class_name)
                if "train" not in settings:
                    return found
                name, _, function = str(settings["train"]).partition(":")
                text = (project / name).read_bytes().decode()
                return _merged(found, generate_training(text, function))
            case _:
                what = "cog.yaml names no class to run."
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise InvalidInput([Problem("unreadable_file", f"{name} cannot be read: {err}.")]) from err
    hint = 'Write run: "predict.py:Predictor", and train: "train.py:train" if there is one.'
    raise InvalidInput([Problem("bad_reference", what, hint)])


def _merged(found: Json, more: Json) -> Json:
    """The document with what training adds; what is in both stays, as `MergeSchemas` in Cog's
    `pkg/schema/generator.go` has it, which sorts all keys as well."""
    schemas = {**more["components"]["schemas"], **found["components"]["schemas"]}
    paths = {**more["paths"], **found["paths"]}
    return _by_key({**found, "components": {"schemas": schemas}, "paths": paths})


def _shape(kind: Type) -> Json:
    match kind.name:
        case "Union":
            variants = [replace(member, nullable=kind.nullable) for member in kind.members]
            shape: Json = {"anyOf": [_shape(variant) for variant in variants]}
        case "dict" if kind.members:
            shape = {"type": "object", "additionalProperties": _shape(kind.members[0])}
        case name if name in _SCALARS:
            shape = _SCALARS[name]
        case name:
            shape = {"type": "array", "items": _shape(kind.members[0]), **_ARRAYS[name]}
    return {**shape, "nullable": True} if kind.nullable else shape


def _by_key(value: Json) -> Json:
    """The same with the keys of all objects in it sorted, as Go writes its maps."""
    ordered: Json = json.loads(json.dumps(value, sort_keys=True))
    return ordered


def _as_go(token: re.Match[str]) -> str:
    """A string or number of Python's JSON as Go writes it.

    Numbers have the shortest digits that read back the same, and an exponent outside 1e-6 .. 1e21.
    """
    text = token[0]
    if text.startswith('"'):
        return text.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
    mantissa, _, exponent = text.partition("e")
    if exponent and not _PLAIN_FROM <= abs(float(text)) < _PLAIN_TO:
        return f"{mantissa}e{int(exponent):+d}"
    return f"{Decimal(text):f}".removesuffix(".0")
