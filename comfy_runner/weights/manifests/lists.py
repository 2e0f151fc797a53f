"""Other tools' lists of models, wherever they are: a file, a folder, an installed package."""

import json
from dataclasses import replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.weights.manifests.importing import (
    Imported,
    from_cog_comfyui,
    from_manager,
    from_workflows,
)

PACKAGE = "comfyui_workflow_templates_json"
"""Python package with ComfyUI's templates."""


class Kind(StrEnum):
    """Lists of models that other tools keep."""

    TEMPLATES = "templates"
    MANAGER = "manager"
    COG_COMFYUI = "cog-comfyui"


def read_list(source: str, kind: Kind | None = None) -> Imported:
    """What a list says: a path, or the name of an installed package of templates.

    Of a folder all `.json` files below it are read as workflows, and the unreadable ones are told
    in the notes; a workflow is called like its file. Beside `weights.json` of cog-comfyui its
    `weight_synonyms.json` is read, too.

    Raises: `InvalidInput` (`no_file`, `bad_list`).
    """
    if scheme(source) in ("http", "https"):
        what = f"{redacted(source)} is an address."
        _refuse("no_file", what, "Download the list, and give its file.")
    path = Path(source)
    try:
        if not path.exists() and (package := _package(source)) is not None:
            path = package
        is_folder = path.is_dir()
    except OSError as err:
        _unreadable(path, err)
    if is_folder:
        if kind not in (None, Kind.TEMPLATES):
            _refuse("bad_list", f"{source} is a folder.", "Give the list's file.")
        return _read_folder(path)
    document = _load(path)
    found: Imported | None = None
    match kind or _looks_like(document):
        case Kind.TEMPLATES:
            found = from_workflows({path.stem: document})
        case Kind.MANAGER if isinstance(document, dict):
            found = from_manager(document)
        case Kind.COG_COMFYUI if isinstance(document, dict):
            beside = path.with_name("weight_synonyms.json")
            synonyms = _load(beside) if beside.is_file() else {}
            found = from_cog_comfyui(document, synonyms if isinstance(synonyms, dict) else {})
    if found is None:
        _refuse(
            "bad_list", f"{source} looks like no list of models.", "Say with --kind what it is."
        )
    return found


def _read_folder(folder: Path) -> Imported:
    files = sorted(folder.rglob("*.json"))
    if not files:
        _refuse("bad_list", f"{folder} holds no JSON.", "Give another folder.")
    documents: dict[str, object] = {}
    notes = []
    for file in files:
        try:
            documents[_name(file, folder)] = _load(file)
        except InvalidInput as err:
            notes.append(str(err))
    imported = from_workflows(documents)
    return replace(imported, notes=(*notes, *imported.notes))


def _package(name: str) -> Path | None:
    """The folder of an installed Python package."""
    module = name.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else None


def _name(file: Path, folder: Path) -> str:
    """A workflow's name: its path without the package's folder `templates` and its ending."""
    parts = file.relative_to(folder).with_suffix("").parts
    return "/".join(parts[1:] if parts[0] == "templates" and parts[1:] else parts)


def _looks_like(document: object) -> Kind | None:
    match document:
        case {"nodes": list()}:
            return Kind.TEMPLATES
        case {"models": list()}:
            return Kind.MANAGER
        case dict() if document and all(
            isinstance(key, str) and key == key.upper() and isinstance(names, list)
            for key, names in document.items()
        ):
            return Kind.COG_COMFYUI
        case _:
            return None


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        _refuse("bad_list", f"{path} is no JSON: {err}.", "Give the list itself.")
    except OSError as err:
        _unreadable(path, err)


def _unreadable(path: Path, err: OSError) -> NoReturn:
    what = f"{path} cannot be read: {err.strerror}."
    _refuse("no_file", what, "Give a file, a folder or an installed package.")


def _refuse(code: str, what: str, hint: str) -> NoReturn:
    raise InvalidInput([Problem(code, what, hint, input="SOURCE")])
