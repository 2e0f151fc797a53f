"""What `comfy-runner schema-diff` shows: how one model's interface differs from another's."""

import json
import sys
from pathlib import Path
from typing import NoReturn

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.publishing.compatibility import Json, compare, lint
from comfy_runner.serving import schema


def show_diff(old: str, new: str, *, as_json: bool = False) -> None:
    """Prints what `new` changes for the callers of `old`, breaking changes first, marked with `!`.

    Each place is a project's folder, a predict.py, a schema file, or `-` for a schema on standard
    input. As JSON it is one object: `breaking`, `changes` (each `breaking`, `input`, `what`),
    `lint` (problems of `new` that cog-safe-push refuses, too).

    Raises: `InvalidInput` for what cannot be read, and once all is printed, for breaking changes.
    """
    if (old, new) == ("-", "-"):
        _refuse("two_inputs", "Both OLD and NEW are standard input.", "Give a file for one.", "NEW")
    before, after = read_schema(old, "OLD"), read_schema(new, "NEW")
    changes, findings = compare(before, after), lint(after)
    breaking = [change for change in changes if change.breaking]
    if as_json:
        print(
            json.dumps(
                {
                    "breaking": bool(breaking),
                    "changes": [change.as_json() for change in changes],
                    "lint": [finding.as_json() for finding in findings],
                }
            )
        )
    else:
        for change in changes:
            print(change)
        for finding in findings:
            print(f"Note: {finding}", file=sys.stderr)
        if not changes:
            print("No difference that a caller could notice.")
    if breaking:
        count = f"{len(breaking)} change{'s' * (len(breaking) != 1)}"
        hint = (
            "Keep the old input beside the new one, or publish under another name; cog-safe-push"
            " lets it pass with ignore_schema_compatibility."
        )
        _refuse("breaking_change", f"{count} can break calls that are right today.", hint, "")


def read_schema(place: str, field: str) -> Json:
    """The OpenAPI document of a model: of its predict.py where there is one, else the file's.

    `place` is a project's folder, a predict.py, a schema file or `-`; `field` is what an error
    calls it. Raises: `InvalidInput`.
    """
    path = Path(place)
    try:
        if place == "-":
            return _parsed(sys.stdin.buffer.read(), field)
        if path.is_dir():
            predictor = path / "predict.py"
            path = predictor if predictor.is_file() else path / schema.SCHEMA
        content = path.read_bytes()
    except OSError as err:
        hint = "Give a project's folder, its predict.py or .cog/openapi_schema.json, or -."
        _refuse("no_file", f"{path} cannot be read: {err.strerror}.", hint, field)
    return (
        schema.generate(_text(content, field)) if path.suffix == ".py" else _parsed(content, field)
    )


def _text(content: bytes, field: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as err:
        _refuse("no_text", f"It is not UTF-8: {err}.", "Save it as UTF-8.", field)


def _parsed(content: bytes, field: str) -> Json:
    try:
        document = json.loads(_text(content, field))
    except (ValueError, RecursionError) as err:
        hint = "Give what comfy-runner schema or cog build wrote."
        _refuse("no_json", f"It is not JSON: {err}.", hint, field)
    if not isinstance(document, dict):
        _refuse("no_schema", "It is no JSON object.", "Give .cog/openapi_schema.json.", field)
    return document


def _refuse(code: str, what: str, hint: str, field: str) -> NoReturn:
    raise InvalidInput([Problem(code, what, hint, input=field)])
