"""All files of a model's repository, from its interface and its workflow."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from comfy_runner.config import PROJECT
from comfy_runner.errors import MachineError
from comfy_runner.graph.workflow import Workflow
from comfy_runner.packs.lock import PackLock
from comfy_runner.packs.lock import write as write_packs
from comfy_runner.publishing import marks, readme
from comfy_runner.publishing.examples import GIVEN, examples, safe_push_cases
from comfy_runner.publishing.interface import Interface
from comfy_runner.publishing.keeping import MANIFEST, PACKS, Content
from comfy_runner.publishing.picture import draw
from comfy_runner.publishing.predictor import predictor
from comfy_runner.weights.manifests.document import Content as Manifest
from comfy_runner.weights.manifests.text import write
from comfy_runner.weights.weight import Weight, human_size

WORKFLOW = "workflows/workflow.json"
PICTURE = "docs/workflow.svg"
PACKAGE = "comfy_runner"

COPIED = (
    *("comfyui.toml", "requirements.in", "requirements-dev.in"),
    *("requirements.lock", "weights_manifest.schema.json", "LICENSE", "NOTICE"),
    *(".gitignore", ".dockerignore", "script/bootstrap", "script/lock", "script/select"),
    *(f"overlays/{name}.yaml" for name in ("baked-weights", "cpu", "private")),
)
"""Files that are the same in every project."""
WRITTEN = ("cog.yaml", "pyproject.toml", "requirements.txt")
"""Files that are made from the ones of the project that has the package."""

OURS_ALONE = re.compile(
    r"(?m)^\[+tool\.(?:mypy|pytest|importlinter|ruff\.lint\.per-file-ignores)\b"
)
"""Tables of pyproject.toml for developing the package itself."""
PER_FILE = """[tool.ruff.lint.per-file-ignores]
# Cog reads the file without running it: Input() stands in the signature, its text is one literal.
"predict.py" = ["B008", "E501", "PLR0917", "RUF001", "RUF002", "UP035", "W291", "W293"]
"""

INSTALL = "\ncomfy-runner nodes install --frozen >&2"
"""What puts the packs of nodes into place."""
PACKS_FIRST = "\n\n# The image gets the packs of nodes from custom_nodes.\n. script/environment"
PIN = re.compile(r"(?m)^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
OF_PACKS = "# Of the packs in custom_nodes."

LARGE = 4_000_000_000
"""Bytes of weights that a machine of GitHub's has no room for, besides the environment."""
HARDWARE = "gpu-l40s"
"""Where the tests of a model with weights run on Replicate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What a repository is made of."""

    name: str
    model: str
    """`owner/name` on Replicate."""
    interface: Interface
    document: Mapping[str, Any]
    """The graph as its author gave it, in either format."""
    workflow: Workflow
    """The graph that it becomes."""
    manifest: Manifest
    """All weights that the project knows."""
    needed: Sequence[Weight] = ()
    """Those that the workflow itself needs."""
    local: Sequence[str] = ()
    """Models that it needs too and that are on this machine alone, as `folder/name`."""
    packs: PackLock = field(default_factory=PackLock)
    pack_requirements: str = ""
    """The Python packages of the packs, as `custom_nodes/requirements.lock` has them."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name to the file that comes with the project under it."""


class _Template(Template):
    """With a sign that shells and workflows of GitHub have no other use for."""

    delimiter = "%"


def contents(project: Project, source: Path = PROJECT) -> dict[str, Content]:
    """Path to content of every file, but for these: `.cog/openapi_schema.json`, which predict.py
    decides, and the files of the manifest and of local packs (`gathering`).

    `source` is the project that has the package which runs this; its files are copied.

    Raises: `MachineError` where these files are not there.
    """
    check_source(source)
    cog = _cog_version(source)
    files = {name: f"{GIVEN}/{name}" for name in project.files}
    shown = examples(project.interface, files)
    lines = readme.fields(
        project.interface, project.workflow, project.needed, project.local, shown.values
    )
    size = sum(weight.size or 0 for weight in project.needed)
    is_large = size > LARGE or any(weight.size is None for weight in project.needed)
    told = human_size(size) if all(w.size for w in project.needed) else "of unknown size"
    test = _filled("ci_big_test.yaml" if is_large else "ci_test.yaml", size=told)
    hardware = HARDWARE if project.needed or project.local else "cpu"
    has_packs = bool(project.packs.packs)
    made: dict[str, str] = {
        "predict.py": predictor(project.interface, project.name),
        "README.md": _filled("README.md", name=project.name, model=project.model, **lines),
        "cog.yaml": cog_yaml((source / "cog.yaml").read_text("utf-8"), cog),
        "pyproject.toml": pyproject((source / "pyproject.toml").read_text("utf-8")),
        WORKFLOW: f"{json.dumps(project.document, indent=2, ensure_ascii=False)}\n",
        PICTURE: draw(project.document, project.workflow, _names(project), title=project.name),
        MANIFEST: _manifest(project.manifest),
        PACKS: write_packs(project.packs),
        "cog-safe-push-configs/default.yaml": _safe_push(project, hardware),
        ".github/workflows/ci.yaml": _filled("ci.yaml", cog=cog, test=test),
        "requirements.txt": requirements(
            (source / "requirements.txt").read_text("utf-8"), project.pack_requirements
        ),
        "script/environment": _filled("environment.sh", packs=INSTALL if has_packs else ""),
        "script/lint": _filled("lint.sh"),
        "script/test": _filled("test.sh", example=_example(project.interface, shown.values)),
        "script/push": _filled("push.sh", cog=cog, packs=PACKS_FIRST if has_packs else ""),
        "script/server": _filled("server.sh"),
    }
    return {
        **{name: source / name for name in COPIED},
        **{path: text.encode("utf-8", "replace") for path, text in made.items()},
        **{path: source / path for path in _package(source)},
        **{files[name]: path for name, path in project.files.items()},
        **shown.made,
    }


def check_source(source: Path) -> None:
    """Raises: `MachineError` where the package was installed without its project."""
    lacking = [name for name in (*COPIED, *WRITTEN) if not (source / name).is_file()]
    if not (source / PACKAGE / "__init__.py").is_file():
        lacking.append(PACKAGE)
    if lacking:
        raise MachineError(
            f"A new project gets a copy of comfy-runner's own files, but {source} has no"
            f" {', '.join(lacking)}. Run it from a checkout of comfy-runner, or from a project that"
            " comfy-runner new has made."
        )


def cog_yaml(text: str, cog: str) -> str:
    """The cog.yaml of a project from that of another one: with another header, and marked places.

    What somebody wrote into marked places of the other one is left out, and so is its training:
    weights are packed by comfy_runner's own train.py, and the project's model takes them.
    """
    lines = [
        line
        for line in marks.skeleton(text).splitlines(keepends=True)
        if not marks.BEGIN.fullmatch(line) and not marks.END.fullmatch(line)
        if not line.startswith("train:")
    ]
    while lines and lines[0].startswith("#"):
        del lines[0]
    body = "".join(lines).strip("\n")
    place = "{0}# begin: yours\n{0}# end: yours\n"
    for key, indent in (("system_packages", "    "), ("environment", "  ")):
        pattern = rf"(?m)^ *{key}:\n(?:{indent}- .*\n)+"
        body = re.sub(pattern, lambda found, i=indent: found[0] + place.format(i), body)  # type: ignore[misc]
    return f"{_filled('cog_header.yaml', cog=cog)}{body}\n\n{place.format('')}"


def pyproject(text: str) -> str:
    """The pyproject.toml of a project: as another one's, without what develops the package."""
    tables = re.split(r"(?m)^(?=\[)", text)
    kept = "".join(table for table in tables if not OURS_ALONE.match(table)).rstrip("\n")
    if "extend-exclude" not in kept:
        mine = f'extend-exclude = [".comfy", ".uv", "{PACKAGE}", "custom_nodes", "*.md"]\n'
        kept = kept.replace("[tool.ruff]\n", f"[tool.ruff]\n{mine}", 1)
    return f"{kept}\n\n{PER_FILE}"


def requirements(text: str, of_packs: str) -> str:
    """The requirements.txt of a project, from another one's and the lock of its packs'."""
    ours = text.partition(f"{OF_PACKS}\n")[0]
    known = {_normal(name) for name, _ in PIN.findall(ours)}
    more = [f"{n}=={version}\n" for n, version in PIN.findall(of_packs) if _normal(n) not in known]
    return f"{ours}{OF_PACKS}\n{''.join(more)}" if more else ours


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _filled(template: str, /, **values: str) -> str:
    """A template with its places filled."""
    folder = resources.files("comfy_runner.publishing") / "templates"
    return _Template((folder / template).read_text("utf-8")).substitute(values)


def _cog_version(source: Path) -> str:
    build = yaml.safe_load((source / "cog.yaml").read_bytes())["build"]
    return str(build["sdk_version"])


def _package(source: Path) -> Iterator[str]:
    """The files of the package folder, sorted."""
    for path in sorted((source / PACKAGE).rglob("*")):
        parts = path.relative_to(source).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and "__pycache__" not in parts and path.suffix != ".pyc" and not hidden:
            yield "/".join(parts)


def _names(project: Project) -> dict[str, str]:
    return {target: p.name for p in project.interface.params for target in p.targets}


def _manifest(manifest: Manifest) -> str:
    schema = f"./{COPIED[COPIED.index('weights_manifest.schema.json')]}"
    return write(manifest.weights, manifest.groups, manifest.bases, schema=schema)


def _safe_push(project: Project, hardware: str) -> str:
    head = _filled("cog_safe_push.yaml", model=project.model, hardware=hardware)
    predict = {
        # Another ComfyUI or torch moves single pixels.
        "compare_outputs": False,
        "predict_timeout": 600,
        "test_cases": safe_push_cases(project.interface),
    }
    text = yaml.safe_dump(
        {"predict": predict},
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=False,
    )
    return f"{head}{text}"


def _example(interface: Interface, values: Mapping[str, Any]) -> str:
    """Lines of a script that give `comfy-runner predict` these values where it has no others."""
    files = {param.name for param in interface.params if param.kind == "Path"}
    parts = []
    for name, value in values.items():
        # A text that begins with @ has two, as it would be a file's name.
        sign = "@" if name in files or str(value).startswith("@") else ""
        parts.append(f" \\\n  -i {readme.quoted(f'{name}={sign}{value}')}")
    return f"[ $# -gt 0 ] || set --{''.join(parts)}\n" if parts else ""
