"""What the setup of a model tells of itself, under Cog."""

import re
import threading
from pathlib import Path

from cog_server import PROJECT, READY, CogServer, settings


def test_setup_tells_how_long_each_of_its_phases_took(tmp_path: Path) -> None:
    told: list[str] = []
    ended = threading.Event()

    def hear(line: str) -> None:
        # Cog 0.23 may tell what is printed just before setup returns as no part of it.
        if found := re.search(r"coglet::(?:setup|user): setup: (.*?)(?: source=Stdout)?$", line):
            told.append(re.sub(r"\d+\.\d\d s", "N s", found[1]))
            if told[-1] == "N s in all":
                ended.set()

    with CogServer(PROJECT, env=settings(tmp_path), hear=hear) as server:
        server.wait_ready(READY)
        assert ended.wait(READY), server.log
    at = [told.index(f"{name} N s") for name in ("interpreter", "ComfyUI", "ready")]
    assert at == sorted(at)
    (nodes,) = (line for line in told if line.startswith("nodes "))
    packs = re.fullmatch(r"nodes N s \(node packs: (\w+) N s, (\w+) N s\)", nodes)
    assert packs is not None, nodes
    assert set(packs.groups()) == {"breakdowns", "faults"}
    assert any(line.startswith("surroundings ") for line in told)
    assert told[-1] == "N s in all"
