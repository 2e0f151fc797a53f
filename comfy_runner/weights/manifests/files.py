"""A manifest from the disk."""

from dataclasses import replace
from pathlib import Path

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.weights.manifests.document import Content, content


def read_file(path: Path, hint: str = "Check the path.") -> Content:
    """The manifest in a file; `hint` is the cure where it cannot be read.

    Raises: `InvalidInput` when it cannot be read or does not hold, naming the file.
    """
    try:
        text = path.read_bytes()
    except OSError as err:
        what = f"The weights manifest {path} cannot be read: {err.strerror}."
        raise InvalidInput([Problem("no_manifest", what, hint, input=str(path))]) from err
    try:
        return content(text)
    except InvalidInput as err:
        raise InvalidInput(
            replace(problem, input=f"{problem.input} of {path}" if problem.input else str(path))
            for problem in err.problems
        ) from err
