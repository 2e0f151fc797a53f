"""Bytecode, without which a start takes three times as long: compiled ahead, and looked at.

uv compiles nothing, Python itself writes nothing where PYTHONDONTWRITEBYTECODE is set or the disk
is read-only, and what it writes counts only as long as the source keeps its modification time,
which not every way to make an image does. So what we compile carries a hash of its source that
Python compares at each import (PEP 552, checked): it stays good when files are copied, and never
outlives its source. Unchecked hashes would save 2 % of a start, but uv leaves the bytecode of
single modules, such as six.py, behind when it replaces them, and Python would run the old one.

Imports nothing but the standard library, so that any interpreter can run this as a file.
"""

import importlib.util
import os
import py_compile
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

LEFT_OUT = re.compile(
    r"/(tests?|tests-unit|networkx|setuptools|pip|mypyc?)/"
    r"|/torch/testing/_internal/(?!__init__|logging_tensor|distributed/(__init__|fake_pg))"
    r"|/torch/_inductor/(?!runtime/|analysis/)\w+/"
    r"|/transformers/models/(?!(auto|bert|byt5|clip|llama|qwen2|t5)/)\w+/"
    # Extensions of OpenGL, one file for each.
    r"|/OpenGL/(raw/)?[A-Z]\w+/(?!VERSION/|(EXT|OES)/(__init__|platform_base|mapbuffer)\.)[A-Z0-9]+/"
)
"""Files that neither a start of ComfyUI 0.30.0 nor a first run with KSampler imports, by their path
with `/` from the folder that is compiled: more than half of all there are."""

BOOT = """
    asyncio.events collections ctypes encodings.utf_8 json.decoder logging re._parser typing
    urllib.parse
    aiohttp aiohttp.client aiohttp.web_protocol alembic.op anyio attr._make av certifi
    charset_normalizer.api comfy_aimdo.control comfy_kitchen.registry einops.einops filelock
    frozenlist h11._connection huggingface_hub huggingface_hub.constants idna jinja2.environment
    kornia kornia.augmentation kornia.feature kornia.filters.kernels kornia.geometry
    kornia.morphology mako.template markupsafe mpmath mpmath.ctx_mp multidict numpy
    numpy._core.numeric numpy.lib numpy.ma.core numpy.random OpenGL.EGL OpenGL.GLES3
    OpenGL.raw.EGL.VERSION.EGL_1_0 packaging.version PIL.Image propcache psutil pydantic.main
    pydantic_settings requests.sessions safetensors scipy scipy.integrate scipy.linalg
    scipy.ndimage scipy.optimize scipy.signal scipy.sparse scipy.special
    scipy.stats._continuous_distns simpleeval spandrel spandrel.architectures.ESRGAN sqlalchemy
    sqlalchemy.engine.default sqlalchemy.orm.mapper sqlalchemy.sql.elements sympy sympy.core.expr
    sympy.functions sympy.matrices sympy.polys.polytools sympy.solvers tokenizers torch
    torch._dynamo torch._dynamo.symbolic_convert torch._inductor.config torch._refs torch.autograd
    torch.cuda torch.distributed torch.export torch.fx.graph torch.jit torch.nn.functional
    torch.nn.modules.conv torch.nn.modules.module torch.onnx torch.optim.adam
    torch.utils.data.dataloader torchaudio torchaudio.functional torchsde torchvision
    torchvision.models.resnet torchvision.transforms tqdm.std transformers
    transformers.models.clip.tokenization_clip triton triton.language.core typing_extensions
    urllib3.connectionpool yaml.loader yarl
"""
"""Some of the 4050 modules that a start of ComfyUI 0.30.0 imports from Python and its packages."""

BOOT_TREE = ("comfy/*.py", "comfy_execution/*.py", "comfy_extras/*.py")
"""Files of ComfyUI 0.30.0 that every start of it imports, as patterns."""

POOL = 200
"""From so many modules on they are compiled by several processes."""

BY_HASH = 0b11  # PEP 552: a hash-based file whose hash is checked
HEAD = 16  # bytes


def main() -> int:
    """Compile the folders and files that are named; by default our packages and our own code."""
    packages, ours = Path(sysconfig.get_path("purelib")), Path(__file__).parents[1]
    own = [packages, ours, ours.parent / "custom_nodes"]
    folders = [Path(name) for name in sys.argv[1:]] or own
    failures = [f"{folder}: {why}" for folder in folders if (why := compile_folder(folder))]
    for line in failures:
        print(f"Not all bytecode could be written in {line}.", file=sys.stderr)
    return 1 if failures else 0


def compile_folder(folder: Path) -> str:
    """Write bytecode for every one of the `modules` of a folder, or a file, that has none of ours.

    Files that are no Python stay without. It is written where this Python looks for it, which
    PYTHONPYCACHEPREFIX decides. Returns why some could not be written, in a few words; empty when
    all was.
    """
    due = [path for path in modules(folder) if not is_compiled(path, by_hash=True)]
    if len(due) < POOL:
        reasons = list(map(_compile, due))
    else:
        try:
            with ProcessPoolExecutor() as pool:
                reasons = list(pool.map(_compile, due, chunksize=20))
        except (NotImplementedError, OSError):  # a system without semaphores
            reasons = list(map(_compile, due))
    return next(filter(None, reasons), "")


def modules(folder: Path) -> Iterator[Path]:
    """Every Python file of a folder but `LEFT_OUT` and what is hidden; a file is itself.

    Whoever names a folder that is left out, or lies in such a one, gets all of it.
    """
    if folder.is_file():
        yield folder
        return
    is_whole = _is_left_out(folder)
    top = len(str(folder))
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        inside = here[top:]
        for name in names:
            if name.endswith(".py") and (is_whole or not LEFT_OUT.search(f"{inside}/{name}")):
                yield Path(here, name)


def left_out(source: Path, folder: Path) -> Path | None:
    """The folder around a file that is `LEFT_OUT` where all of `folder` is compiled; else None."""
    inside = f"/{source.relative_to(folder).as_posix()}"
    found = LEFT_OUT.search(inside)
    return None if found is None else folder / inside[1 : found.end()]


def _is_left_out(folder: Path) -> bool:
    """Whether a folder is, or lies in, what is left out of where its package lies.

    Folders above that do not count: a project may lie in one that is called `tests`.
    """
    whole = folder.absolute()
    above = (each for each in whole.parents if not (each / "__init__.py").is_file())
    return LEFT_OUT.search(f"/{whole.relative_to(next(above, whole)).as_posix()}/") is not None


def boot_modules(folder: Path) -> Iterator[Path]:
    """Those of `BOOT` that are in a folder of Python packages."""
    for name in BOOT.split():
        path = folder.joinpath(*name.split("."))
        for source in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if source.is_file():
                yield source


def is_compiled(source: Path, *, by_hash: bool = False) -> bool:
    """Whether Python would take the module's bytecode instead of its source.

    With `by_hash` only bytecode counts that stays good whatever becomes of the source's
    modification time.
    """
    try:
        with Path(importlib.util.cache_from_source(source)).open("rb") as file:
            head = file.read(HEAD)
        magic, flags, rest = head[:4], int.from_bytes(head[4:8], "little"), head[8:]
        if magic != importlib.util.MAGIC_NUMBER or len(head) < HEAD:
            return False
        if by_hash and flags != BY_HASH:
            return False
        if flags == BY_HASH:
            return rest == importlib.util.source_hash(source.read_bytes())
        if flags:
            return True
        found = source.stat()
    except OSError:
        return False
    now = (int(found.st_mtime), found.st_size)
    return rest == b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in now)


def _compile(source: Path) -> str:
    """Why the module's bytecode could not be written; empty when it was, or there can be none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other people's code
            py_compile.compile(
                str(source),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
            )
    except (py_compile.PyCompileError, ValueError):  # a template, or Python of another version
        return ""
    except OSError as err:
        return err.strerror or str(err)
    return ""


if __name__ == "__main__":
    sys.exit(main())
