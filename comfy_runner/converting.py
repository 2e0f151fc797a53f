"""The `convert` command: several documents, each to a file of its own."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from comfy_runner.convert.editor import Conversion
from comfy_runner.documents.source import is_address
from comfy_runner.errors import ComfyRunnerError, InvalidInput, Problem
from comfy_runner.runs.files import safe_name


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one source."""

    source: str
    path: Path
    """The file that tells it: `NAME.json`, or `NAME.error.json` where it failed."""
    notes: tuple[str, ...] = ()
    error: ComfyRunnerError | None = None


def to_json(conversion: Conversion) -> str:
    """The workflow as the text of a file that ComfyUI's `POST /prompt` and other tools take."""
    return json.dumps(conversion.workflow.to_json(), indent=2)


def remarks(conversion: Conversion) -> tuple[str, ...]:
    """What was left out or decided, and what a run of the workflow would lack."""
    return (*conversion.notes, *map(str, conversion.problems))


def convert_all(
    sources: Sequence[str], folder: Path, convert: Callable[[str], Conversion]
) -> Iterator[Converted]:
    """Convert each source into the folder, which must exist, and tell each as soon as it is there.

    The result is called like its source, `NAME.json`. One that fails leaves `NAME.error.json` with
    the error's code, message and problems, and stops no other. What an earlier call left under the
    other name is removed.

    Raises: `InvalidInput` when two sources have one name, or one lies where a result would; then
    nothing is written.
    """
    names = _names(sources)
    _check_apart(sources, folder, names)
    for source, name in zip(sources, names, strict=True):
        result, failure = folder / f"{name}.json", folder / f"{name}.error.json"
        try:
            conversion = convert(source)
        except ComfyRunnerError as err:
            write(failure, json.dumps({"error": err.as_json()}, indent=2))
            result.unlink(missing_ok=True)
            yield Converted(source, failure, error=err)
        else:
            write(result, to_json(conversion))
            failure.unlink(missing_ok=True)
            yield Converted(source, result, remarks(conversion))


def write(path: Path, text: str) -> None:
    """Write a file of text so that it is there whole or not at all.

    A link stays one, and what is no file, as /dev/stdout mostly is, is written to and not replaced.
    """
    content = f"{text}\n"
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")
        return
    path = path.resolve()
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=path.parent) as folder:
        part = Path(folder, "part")
        part.write_text(content, encoding="utf-8")
        part.replace(path)


def _names(sources: Sequence[str]) -> list[str]:
    """Each source's file name without its ending, or with it where two would be called the same."""
    files = [_file_name(source) for source in sources]
    stems = Counter(Path(file).stem for file in files)
    names = [Path(file).stem if stems[Path(file).stem] == 1 else file for file in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    twice += [name for name in names if f"{name}.error" in names]  # a result and an error are one
    if twice:
        what = f"Several of them are called {', '.join(twice)}."
        hint = "Convert them in separate calls, with a folder each."
        raise InvalidInput([Problem("same_name", what, hint, input="WORKFLOW")])
    return names


def _check_apart(sources: Sequence[str], folder: Path, names: Sequence[str]) -> None:
    """See that no source is overwritten or removed, as it would be in its own folder."""
    ends = (".json", ".error.json")
    made = {(folder / f"{name}{end}").resolve() for name in names for end in ends}
    lost = [source for source in sources if _is_path(source) and Path(source).resolve() in made]
    if lost:
        what = f"The result of {lost[0]} would overwrite a file that is to be converted."
        raise InvalidInput([Problem("same_file", what, "Use another folder.", input="--out-dir")])


def _is_path(source: str) -> bool:
    return source != "-" and not is_address(source)


def _file_name(source: str) -> str:
    if _is_path(source):
        return Path(source).name or "workflow"
    if source == "-" or source.lstrip()[:5].lower() == "data:":
        return "workflow"
    path = unquote(urlsplit(source.strip()).path).rstrip("/")
    return safe_name(path) if path else "workflow"
