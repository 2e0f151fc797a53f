"""The commands around Cog's own server, as their users type them."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from graphs import HERE, node, picture
from PIL import Image
from program import PROGRAM, Program

from comfy_runner.config import Config
from comfy_runner.serving import schema

PREDICTOR = """
import sys
import time
from typing import Iterator

import cog
from cog import BaseRunner, Input, Path


class Predictor(BaseRunner):
    def setup(self) -> None:
        print("settling down", flush=True)
        time.sleep(1)  # Cog 0.23 may lose what is printed just before setup returns

    @cog.streaming
    def run(
        self,
        count: int = Input(description="How many files.", ge=0, le=3),
        seconds: float = Input(description="How long.", default=0.0),
        word: str = Input(description="What is in them.", default="x", max_length=9),
        image: Path | None = Input(description="One more.", default=None),
    ) -> Iterator[Path]:
        print(f"making {count}", flush=True)
        if word == "bad":
            raise RuntimeError("no such word")
        if word == "gone":
            import os
            os._exit(3)
        for number in range(count):
            made = Path(f"made-{number}.png")
            made.write_text(word)
            print(f"Made {made.name} (node 1, Maker)", flush=True)
            yield made
        if image is not None:
            kept = Path("output.jpg")  # Cog removes its own file with the end of the prediction
            kept.write_bytes(image.read_bytes())
            yield kept
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)
"""
WHOLE = """
from cog import BaseRunner, Input


class Predictor(BaseRunner):
    def run(self, n: int = Input(default=1)) -> dict[str, int]:
        print("counted", flush=True)
        return {"n": n}
"""
CHOOSING = """
from cog import BaseRunner, Input

# choices from folder:loras, written anew by comfy-runner schema
LORA_CHOICES = ["old.safetensors"]
# choices from group:styles, written anew by comfy-runner schema
STYLE_CHOICES = ["none"]


class Predictor(BaseRunner):
    def run(
        self,
        lora: str = Input(description="The LoRA.", choices=LORA_CHOICES, default="b.safetensors"),
        style: str = Input(description="The style.", choices=STYLE_CHOICES),
    ) -> str:
        return lora
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The program in a folder that holds a model without ComfyUI."""
    config = Config.from_environment({"COMFY_RUNNER_HOME": str(tmp_path / "home")})
    made(tmp_path, PREDICTOR)
    return Program(config, tmp_path)


def made(folder: Path, text: str) -> Path:
    """A project with this predict.py."""
    folder.mkdir(exist_ok=True)
    (folder / "predict.py").write_text(text, "utf-8")
    (folder / "cog.yaml").write_text("run: predict.py:Predictor\n", "utf-8")
    return folder


def test_predict_saves_each_file_and_tells_where_and_shows_the_logs(program: Program) -> None:
    (program.folder / "photo.jpg").write_bytes(b"jpeg")
    out, err = program("predict", "-i", "count=2", "-i", "word=hi", "-i", "image=@photo.jpg")
    assert out.splitlines() == ["output/made-0.png", "output/made-1.png", "output/output.jpg"]
    assert (program.folder / "output" / "made-1.png").read_text() == "hi"
    assert (program.folder / "output" / "output.jpg").read_bytes() == b"jpeg"
    told = err.splitlines()
    assert told.index("settling down") < told.index("making 2") < len(told)
    assert (program.folder / schema.SCHEMA).is_file()


def test_predict_tells_a_program_all_at_the_end(program: Program) -> None:
    out, _ = program("predict", "-i", "count=1", "--out", "made here", "--json")
    told = json.loads(out)
    assert told["outputs"] == ["made here/made-0.png"]
    assert told["predict_time"] > 0


def test_predict_takes_another_project_and_one_that_does_not_stream(program: Program) -> None:
    made(program.folder / "other", WHOLE)
    out, err = program("predict", "--project", "other", "-i", "n=3")
    assert out == '{"n": 3}\n'
    assert "counted" in err
    _, err = program("predict", "--project", "none", code=2)
    assert "none holds no predict.py and cog.yaml" in err


def test_inputs_that_do_not_fit_are_told_before_anything_is_started(program: Program) -> None:
    (program.folder / "photo.jpg").touch()
    wrong = ("-i", "seconds=long", "-i", "wrod=x", "-i", "image=photo.jpg")
    out, err = program("predict", *wrong, "--json", code=2)
    assert "input seconds: 'long' is no number." in err
    assert "Did you mean 'word'?" in err
    assert "Write image=@photo.jpg to send that file." in err
    assert "input count: It has to be given. Give -i count=VALUE. How many files." in err
    assert "Starting" not in err
    codes = [problem["code"] for problem in json.loads(out)["error"]["problems"]]
    assert codes == ["unknown_input", "no_float", "no_file_given", "missing_input"]


def test_what_only_the_server_refuses_is_told_for_its_input(program: Program) -> None:
    _, err = program("predict", "-i", "count=1", "-i", "word=much too long", code=2)
    assert "Error: input word: " in err
    assert "Traceback" not in err


def test_each_failure_has_its_exit_code(program: Program) -> None:
    out, err = program("predict", "-i", "count=1", "-i", "word=bad", "--json", code=3)
    assert "Error: RuntimeError: no such word" in err
    assert json.loads(out)["error"]["code"] == "prediction_failed"
    assert "Worker crashed" in program("predict", "-i", "count=1", "-i", "word=gone", code=4)[1]
    broken = PREDICTOR.replace('print("settling down", flush=True)', "raise OSError('no disk')")
    made(program.folder, broken)
    _, err = program("predict", "-i", "count=1", code=4)
    assert err.splitlines()[-1] == "Error: The model's setup failed: OSError: no disk"


def test_an_interrupted_prediction_leaves_no_process(program: Program) -> None:
    with subprocess.Popen(
        [PROGRAM, "predict", "-i", "count=1", "-i", "seconds=60"],
        cwd=program.folder,
        env=program.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would whatever it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "output/made-0.png\n"
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "Traceback" not in rest
    assert len(family) > 1
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_schema_renews_what_can_be_chosen(program: Program) -> None:
    made(program.folder, CHOOSING)
    models = program.folder / "home" / "models" / "loras"
    models.mkdir(parents=True)
    for name in ("b.safetensors", "a.safetensors"):
        (models / name).touch()
    manifest: dict[str, Any] = {
        "version": 1,
        "groups": {"styles": ["loras/ink.safetensors"]},
        "weights": [
            {"name": "ink.safetensors", "folders": ["loras"], "urls": ["https://example.com/i"]}
        ],
    }
    (program.folder / "manifest.json").write_text(json.dumps(manifest))
    program.environment = {
        **program.environment,
        "COMFY_RUNNER_MANIFEST": str(program.folder / "manifest.json"),
    }
    path = program.folder / "predict.py"
    path.chmod(0o755)
    assert "Run comfy-runner schema." in program("schema", "--check", code=2)[1]
    out, err = program("schema")
    assert out == f"{program.folder / schema.SCHEMA}\n"
    assert "the choices in predict.py were written anew" in err
    listed = '["a.safetensors", "b.safetensors"]'
    assert path.read_text() == CHOOSING.replace('["old.safetensors"]', listed).replace(
        '["none"]', '["ink.safetensors"]'
    )
    assert path.stat().st_mode & 0o777 == 0o755
    written = json.loads((program.folder / schema.SCHEMA).read_bytes())
    assert written["components"]["schemas"]["style"]["enum"] == ["ink.safetensors"]
    program("schema", "--check")
    (models / "b.safetensors").unlink()
    _, err = program("schema", code=2)
    assert "Its default 'b.safetensors' is not in folder:loras any more." in err
    # Serving goes on: setup may be what fetches it.
    out, err = program("predict", "-i", "style=ink.safetensors")
    assert out == "b.safetensors\n"
    assert "Note: the choices in predict.py stay as they are: input lora: Its default" in err
    program("schema", "--check", code=2)
    # A machine that only checks has no models at all.
    (models / "a.safetensors").unlink()
    _, err = program("schema", "--check")
    assert "Note: the choices in predict.py are not looked at" in err


def test_a_predictor_that_is_not_python_is_told(program: Program) -> None:
    made(program.folder, CHOOSING + "(")
    _, err = program("predict", code=2)
    assert "This is not Python" in err
    assert "Traceback" not in err


def test_the_shipped_model_makes_a_prediction(program: Program, comfy_config: Config) -> None:
    project = HERE.parent
    shipped = Program(comfy_config, program.folder)
    workflow = shipped.workflow(
        picture() | {"3": node("TestSleep", "Short", seconds=0.01, interruptible=True)}
    )
    arguments = ("--project", project, "-i", f"workflow_json=@{workflow}", "-i", "receipt=yes")
    out, err = shipped("predict", *arguments, "-i", 'inputs={"1.width": 32}')
    first, second = out.splitlines()
    with Image.open(shipped.folder / first) as image:
        assert image.size == (32, 48)
    assert first == "output/2_Save-it_plain_00001.png"
    assert second == "output/receipt.json"
    assert "Made 2_Save-it_plain_00001.png (node 2, Save it)" in err
