"""Bytecode that Python itself takes, and what is left without any."""

import json
import os
import py_compile
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from comfy_runner.comfyui import bytecode
from comfy_runner.comfyui.bytecode import (
    boot_modules,
    compile_folder,
    is_compiled,
    left_out,
    modules,
)
from comfy_runner.config import PROJECT

BOOT_TIMEOUT = 180

LIST_IMPORTS = """
import json, os, runpy, sys
sys.path.insert(0, os.getcwd())
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as err:
    assert not err.code, err
files = [getattr(module, "__file__", None) for module in sys.modules.values()]
sys.stdout.write(json.dumps([file for file in files if file and file.endswith(".py")]))
"""


def write(folder: Path, *names: str, text: str = "X = 1\n") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(*words: str | Path, cwd: Path = PROJECT, **variables: str) -> tuple[str, str]:
    """A Python program's stdout and stderr, with these variables and none of our own."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=BOOT_TIMEOUT,
    )
    return done.stdout, done.stderr


def takes(source: Path) -> bool:
    """Whether Python takes the module's bytecode when it imports it."""
    _, told = run("-B", "-v", "-c", f"import {source.stem}", cwd=source.parent)
    assert f"import '{source.stem}'" in told
    return f" matches {source}" in told


@pytest.mark.parametrize("mode", py_compile.PycInvalidationMode)
@pytest.mark.parametrize("change", ["", "time", "text", "gone", "cut", "older Python"])
def test_what_counts_as_compiled_is_what_python_takes(
    tmp_path: Path, mode: py_compile.PycInvalidationMode, change: str
) -> None:
    source = tmp_path / "some_module.py"
    source.write_text("X = 1\n")
    compiled = Path(py_compile.compile(str(source), doraise=True, invalidation_mode=mode))
    then = source.stat()
    match change:
        case "time":
            os.utime(source, (1, 1))
        case "text":
            source.write_text("X = 2\n")
            os.utime(source, ns=(then.st_atime_ns, then.st_mtime_ns))
        case "gone":
            compiled.unlink()
        case "cut":
            compiled.write_bytes(compiled.read_bytes()[:10])
        case "older Python":
            compiled.write_bytes(b"\0\0\r\n" + compiled.read_bytes()[4:])
    assert is_compiled(source) == takes(source)


def test_a_folder_is_compiled_once_and_for_good(tmp_path: Path) -> None:
    write(tmp_path, "main.py", "a/__init__.py", "a/b.py", "a/tests/test_b.py", ".git/hook.py")
    sources = [tmp_path / name for name in ("main.py", "a/__init__.py", "a/b.py")]
    assert sorted(modules(tmp_path)) == sorted(sources)
    assert compile_folder(tmp_path) == ""
    compiled = {path: path.stat().st_ino for path in tmp_path.rglob("*.pyc")}
    assert len(compiled) == 3
    for source in sources:
        os.utime(source, (1, 1))
    assert all(map(is_compiled, sources))
    assert compile_folder(tmp_path) == ""
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.pyc")} == compiled


def test_what_is_named_is_compiled_even_where_it_is_left_out(tmp_path: Path) -> None:
    """From `tests`, in which a project may lie, no more follows than from any other name."""
    folder = tmp_path / "tests" / "packages"
    write(folder, "networkx/__init__.py", "networkx/tests/__init__.py", "networkx/tests/t.py")
    write(folder, "other/__init__.py", "other/tests/t.py", "other/tests/tests/t.py", "pip/p.py")
    inner = folder / "networkx" / "tests"
    everything = sorted(folder.rglob("networkx/**/*.py"))
    assert sorted(modules(folder)) == [folder / "other" / "__init__.py"]
    assert sorted(modules(folder / "other")) == [folder / "other" / "__init__.py"]
    assert sorted(modules(folder / "networkx")) == everything
    assert sorted(modules(inner)) == [inner / "__init__.py", inner / "t.py"]
    assert len(list(modules(folder / "other" / "tests"))) == 2
    for source in everything:
        found = left_out(source, folder)
        assert found == folder / "networkx"
    assert left_out(folder / "other" / "tests" / "t.py", folder) == folder / "other" / "tests"
    assert left_out(folder / "other" / "__init__.py", folder) is None
    file = folder / "pip" / "p.py"
    run("-P", bytecode.__file__, file)
    assert [path for path in folder.rglob("*.py") if is_compiled(path)] == [file]


def test_a_changed_module_is_not_run_as_it_was_and_is_compiled_again(tmp_path: Path) -> None:
    source = write(tmp_path, "thing.py") / "thing.py"
    compile_folder(tmp_path)
    then = source.stat()
    source.write_text("X = 2\n")
    os.utime(source, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert run("-B", "-c", "import thing; print(thing.X)", cwd=tmp_path)[0] == "2\n"
    assert not is_compiled(source)
    compile_folder(tmp_path)
    assert is_compiled(source)
    assert run("-B", "-c", "import thing; print(thing.X)", cwd=tmp_path)[0] == "2\n"


def test_what_python_compiled_itself_is_made_to_last(tmp_path: Path) -> None:
    source = write(tmp_path, "thing.py") / "thing.py"
    run("-c", "import thing", cwd=tmp_path)
    assert is_compiled(source)
    assert not is_compiled(source, by_hash=True)
    compile_folder(tmp_path)
    assert is_compiled(source, by_hash=True)


def test_many_modules_are_compiled_where_python_must_not_write(tmp_path: Path) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    write(tree, *(f"m{number}.py" for number in range(bytecode.POOL + 1)))
    run("-P", bytecode.__file__, tree, PYTHONDONTWRITEBYTECODE="1")
    assert all(map(is_compiled, modules(tree)))
    _, told = run("-v", "-c", "import m7", cwd=tree, PYTHONPYCACHEPREFIX=str(elsewhere))
    assert f" matches {tree}" not in told
    variables = {"PYTHONPYCACHEPREFIX": str(elsewhere), "PYTHONDONTWRITEBYTECODE": "1"}
    run("-P", bytecode.__file__, tree, **variables)
    _, told = run("-v", "-c", "import m8", cwd=tree, **variables)
    assert f"{elsewhere}{tree}/m8.cpython-312.pyc matches {tree}/m8.py" in told


def test_what_is_no_python_stays_without_and_warns_nobody(tmp_path: Path) -> None:
    write(tmp_path, "template.py", text="import {{ name }}\n")
    write(tmp_path, "null.py", text="\0")
    write(tmp_path, "odd.py", text="X = '\\d'\n")
    assert compile_folder(tmp_path) == ""
    assert [path.name for path in modules(tmp_path) if is_compiled(path)] == ["odd.py"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write(tmp_path, "thing.py", "__pycache__")
    why = compile_folder(tmp_path)
    assert why
    done = subprocess.run(
        [sys.executable, bytecode.__file__, tmp_path], capture_output=True, text=True, check=False
    )
    told = f"Not all bytecode could be written in {tmp_path}: {why}.\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_what_is_left_out_is_never_imported_by_a_start(comfyui_tree: Path, tmp_path: Path) -> None:
    for name in ("custom_nodes", "user", "models"):
        (tmp_path / name).mkdir()
    out, _ = run(
        *("-c", LIST_IMPORTS, "--cpu", "--quick-test-for-ci", "--disable-api-nodes"),
        *("--base-directory", tmp_path, "--database-url", "sqlite:///:memory:"),
        cwd=comfyui_tree,
        OMP_NUM_THREADS="1",
    )
    imported = {Path(file) for file in json.loads(out[out.index('["/') :])}
    packages, python = (Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    assert sum(path.is_relative_to(packages) for path in imported) > 3000
    for folder in (packages, comfyui_tree):
        inside = (f"/{path.relative_to(folder)}" for path in imported if folder in path.parents)
        assert [path for path in inside if bytecode.LEFT_OUT.search(path)] == []
    sampled = {*boot_modules(packages), *boot_modules(python)}
    assert len(sampled) == len(bytecode.BOOT.split())
    assert sampled <= imported
    for pattern in bytecode.BOOT_TREE:
        assert imported.issuperset(comfyui_tree.glob(pattern))


def test_the_image_gets_bytecode_for_python_its_packages_and_comfyui(tmp_path: Path) -> None:
    commands = yaml.safe_load((PROJECT / "cog.yaml").read_text())["build"]["run"]
    [command] = [command for command in commands if "compileall" in command]
    define, _, rest = command.partition("; for ")
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("stdlib", "purelib"):
        shell = ["sh", "-c", f"{define}; of {name}"]
        found = subprocess.run(shell, env=path, capture_output=True, text=True, check=True)
        assert found.stdout == f"{sysconfig.get_path(name)}\n"
    folders = [tmp_path / name for name in ("python", "python/site-packages", "comfyui")]
    for folder in folders:
        write(folder, "a.py", "b/c.py", "b/tests/d.py", "no.py", text="{")
        write(folder, "a.py", "b/c.py", "b/tests/d.py")
    there = '"$(of stdlib)" "$(of purelib)" /opt/ComfyUI'
    assert there in rest
    script = f"{define}; for {rest.replace(there, shlex.join(map(str, folders)))}"
    subprocess.run(["sh", "-c", script], env=path, check=True, capture_output=True)
    for folder in folders:
        compiled = [name for name in ("a.py", "b/c.py") if is_compiled(folder / name, by_hash=True)]
        assert compiled == ["a.py", "b/c.py"]
        assert not is_compiled(folder / "b/tests/d.py")


def test_set_up_compiles_the_environment_and_our_package(tmp_path: Path) -> None:
    script = (PROJECT / "script" / "bootstrap").read_text()
    [line] = re.findall(rf"(?m)^.* {re.escape(bytecode.__name__)}\b", script)
    run("-m", "venv", "--without-pip", tmp_path / ".venv")
    [packages] = (tmp_path / ".venv").glob("lib/python*/site-packages")
    write(packages, "torch/__init__.py", "torch/_inductor/codegen/cpp.py")
    (tmp_path / "comfy_runner").symlink_to(PROJECT / "comfy_runner")
    cache = tmp_path / "cache"
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(cache)}
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env=os.environ | variables, check=True)
    compiled = {path.relative_to(cache) for path in cache.rglob("*.pyc")}
    here = tmp_path.relative_to("/")
    assert here / "comfy_runner" / "config.cpython-312.pyc" in compiled
    inside = packages.relative_to("/")
    assert {path for path in compiled if inside in path.parents} == {
        inside / "torch" / "__init__.cpython-312.pyc"
    }
