"""Variants of a `cog.yaml`: one base and small overlays, merged into a file for `cog build -f`.

Overlays lie in `overlays/NAME.yaml` beside the base. What is merged how, `merged` tells.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from comfy_runner.errors import CallerError, ComfyRunnerError, InvalidInput, Problem

BASE = "cog.yaml"
OVERLAYS = "overlays"
"""The folder of the overlays."""

TOP = frozenset(
    {"build", "concurrency", "environment", "image", "model", "observability", "predict", "run"}
    | {"train", "weights"}
)
BUILD = frozenset(
    {"cuda", "cudnn", "gpu", "pre_install", "python_packages", "python_requirements"}
    | {"python_version", "run", "sdk_version", "system_packages"}
)
"""The keys that Cog reads, at the top and under `build` (pkg/config/config_file.go 0.22; of 0.23
`observability`). It passes over any other without a word, so a slip would build another image."""


def merged(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The base with an overlay over it.

    Mappings are merged key by key, and a null takes a key away. A list is appended to the one of
    the base, but of `environment` an entry takes the place of the one with its name. All else
    takes the place of what the base has.

    Raises: `InvalidInput` for keys that Cog does not know, and for a value of another kind than
    the base's.
    """
    strange = [(f"{key}", TOP) for key in overlay if key not in TOP]
    if isinstance(build := overlay.get("build"), Mapping):
        strange += [(f"build.{key}", BUILD) for key in build if key not in BUILD]
    if strange:
        raise InvalidInput([_unknown(key, known) for key, known in strange])
    return _merged(base, overlay, "")


def variant(project: Path, names: Sequence[str]) -> str:
    """The text of the `cog.yaml` of a project with these overlays over it, the last one on top.

    Raises: `InvalidInput` for an overlay that is not there or is no overlay.
    """
    config = _read(project / BASE, BASE)
    for name in names:
        path = project / OVERLAYS / f"{name}.yaml"
        if name not in overlays(project):
            similar = get_close_matches(name, overlays(project)) or overlays(project)
            there = f"There are {', '.join(similar)}." if similar else "There is none."
            _refuse("no_overlay", f"There is no {OVERLAYS}/{name}.yaml.", there, name)
        try:
            config = merged(config, _read(path, f"{OVERLAYS}/{name}.yaml"))
        except InvalidInput as err:
            raise InvalidInput(
                [
                    Problem(each.code, each.what, each.hint, input=f"{name}.yaml: {each.input}")
                    for each in err.problems
                ]
            ) from err
    sources = ", ".join((BASE, *(f"{OVERLAYS}/{name}.yaml" for name in names)))
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
    return f"# Made by script/select of {sources}: change those. For cog's option -f.\n{body}"


def overlays(project: Path) -> list[str]:
    """The names of the overlays that a project has."""
    return sorted(path.stem for path in (project / OVERLAYS).glob("*.yaml"))


def file_name(names: Sequence[str]) -> str:
    """What the file of a variant is called: it must lie beside `cog.yaml`, which is its project's
    folder for Cog."""
    return f"cog-{'-'.join(names)}.yaml"


def main(arguments: Sequence[str] | None = None, project: Path | None = None) -> int:
    """Write a variant and print its name; without overlays named, print those there are.

    `project` is the folder with the `cog.yaml`, by default the present one. The exit status is 0; 2
    for what is wrong with the overlays and 4 for a file that cannot be written, told on standard
    error.
    """
    parser = argparse.ArgumentParser(prog="script/select", description=__doc__)
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="overlay in overlays/, without .yaml"
    )
    names, project = parser.parse_args(arguments).names, project or Path.cwd()
    if not names:
        print(*overlays(project), sep="\n")
        return 0
    try:
        text = variant(project, names)
        path = project / file_name(names)
        part = path.with_name(f"{path.name}.part")
        part.write_text(text, "utf-8")
        part.replace(path)
    except (ComfyRunnerError, OSError) as err:
        print(f"Error: {err}", file=sys.stderr)
        return 2 if isinstance(err, CallerError) else 4
    print(path.name)
    return 0


def _merged(base: Mapping[str, Any], overlay: Mapping[str, Any], place: str) -> dict[str, Any]:
    result = dict(base)
    for key, value in overlay.items():
        here, old = f"{place}{key}", base.get(key)
        if value is None:
            result.pop(key, None)
        elif old is None:
            result[key] = value
        elif _kind(value) != _kind(old):
            what = f"{here} is {_kind(value)}, but in the base {_kind(old)}."
            _refuse("other_kind", what, "Write it as the base does.", here)
        elif isinstance(value, Mapping):
            result[key] = _merged(old, value, f"{here}.")
        elif isinstance(value, list):
            result[key] = _set(old, value) if here == "environment" else [*old, *value]
        else:
            result[key] = value
    return result


def _set(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """`NAME=VALUE` entries, of which a new one takes the place of an old one of its name."""
    entries = {str(each).partition("=")[0]: str(each) for each in old}
    return list((entries | {str(each).partition("=")[0]: str(each) for each in new}).values())


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else "a single value"


def _read(path: Path, name: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        _refuse("no_file", f"There is no {name}.", "Run it in a project of Cog.", name)
    except UnicodeDecodeError:
        _refuse("not_yaml", f"{name} is not text in UTF-8.", "Save it as UTF-8.", name)
    except yaml.YAMLError as err:
        _refuse("not_yaml", f"{name} is no YAML: {err}", "Correct it.", name)
    if not isinstance(content, Mapping):
        _refuse("not_yaml", f"{name} holds no mapping.", "Write it like cog.yaml.", name)
    return content


def _unknown(key: str, known: frozenset[str]) -> Problem:
    similar = get_close_matches(key.rpartition(".")[2], known, n=1)
    hint = f"Did you mean {similar[0]}?" if similar else f"It knows {', '.join(sorted(known))}."
    return Problem("unknown_key", f"Cog has no key {key}.", hint, input=key)


def _refuse(code: str, what: str, hint: str, field: str) -> NoReturn:
    raise InvalidInput([Problem(code, what, hint, input=field)])


if __name__ == "__main__":
    sys.exit(main())
