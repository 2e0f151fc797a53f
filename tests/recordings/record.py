"""Makes the recordings beside it from a real ComfyUI; run by hand after an upgrade of ComfyUI.

    python tests/recordings/record.py

Each file has one run: the submitted graph in the first line, then each message that ComfyUI sent,
in order, and the run's entry of /history in the last line.
"""

import json
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from graphs import bundled, node, picture  # noqa: E402

from comfy_runner.comfyui.client import ComfyClient  # noqa: E402
from comfy_runner.comfyui.process import ComfyProcess  # noqa: E402
from comfy_runner.config import Config  # noqa: E402
from comfy_runner.fetch.urls import scheme  # noqa: E402
from comfy_runner.weights.manifest import Manifest  # noqa: E402
from comfy_runner.weights.store import WeightStore  # noqa: E402

RUNS: dict[str, dict[str, Any]] = {
    "sampled": bundled("text_to_picture"),
    "sampled_again": bundled("text_to_picture"),
    "failed": picture() | {"3": node("TestRaise", "Bad", message="as asked")},
    "interrupted": {"1": node("TestSleep", "Slow", seconds=20.0, interruptible=True)},
}


def record(client: ComfyClient, name: str, graph: dict[str, Any]) -> None:
    """Run one graph and write down what ComfyUI says."""
    run_id = str(uuid.uuid4())
    lines: list[Any] = [{"run_id": run_id, "graph": graph}]
    with client.connect(run_id) as messages:
        client.submit(graph, run_id)
        while True:
            message = messages.receive(1.0)
            if not isinstance(message, dict):
                continue
            lines.append(message)
            if message["type"] == "executing":
                if message["data"]["node"] is None:
                    break
                if name == "interrupted":
                    client.cancel(run_id)
    history = client.history(run_id)
    assert history is not None
    lines.append({"history": {key: history[key] for key in ("outputs", "status")}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for private in (str(Path.home()), str(HERE.parent.parent)):
        text = text.replace(private, "/somewhere")
    (HERE / f"{name}.jsonl").write_text(text)


def main() -> None:
    """Boot ComfyUI and make all recordings."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        config = replace(
            Config.from_environment(),
            home=home,
            models=home / "models",
            custom_nodes=HERE.parent / "custom_nodes",
            device="cpu",
        )
        manifest = Manifest.parse(config.manifest.read_bytes())
        bundled = [weight for weight in manifest.weights if not scheme(weight.urls[0].url)]
        for _ in WeightStore(config).ensure(bundled):
            pass
        process = ComfyProcess(config, home / "run")
        process.start()
        try:
            process.wait_ready(config.boot_timeout)
            for name, graph in RUNS.items():
                record(ComfyClient(process.base_url, process.token), name, graph)
        finally:
            process.stop()


if __name__ == "__main__":
    main()
