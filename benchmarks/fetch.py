"""Seconds that files take from a web server on this machine to this machine's memory.

Each tool fetches the same files anew, in a process of its own, and the tools take turns, so that
noise from outside hits all of them:

  ours         comfy_runner's own engine after its first requests, with the files' hashes
  ours, bare   the same without hashes
  pget         `pget multifile -` with its defaults
  pget tuned   -m 8M -c 4, and -m 8M -c 32 where the server limits each connection
  curl         one connection, eight for many files
  aria2c       -x 16 -s 16 -j 16 -k 8M
  hub          huggingface_hub's plain HTTP path, eight files at once

A tool that is not installed has no row. The server is nginx where it is on PATH, else aiohttp's
FileResponse in a process of its own, which limits no connection. The clock of a Python tool starts
once its modules are loaded, as they are where it is used; that of a program when it is started.
CPU seconds are the tool's own, without the server's. Files lie in /dev/shm where there is one.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1024**2
SMALL_FILES = 200
CAP = "40m"
"""Bytes a second that nginx lets each connection have, in its own words."""
TIMEOUT = 300.0
"""Seconds for one fetch."""

LAUNCH = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
with open(sys.argv[1], "rb") as given:
    # curl draws its progress in spite of -s where it fetches in parallel.
    child = subprocess.Popen(sys.argv[2:], stdin=given, stdout=-1, stderr=subprocess.STDOUT)
    told = child.stdout.read()
_, status, used = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
figures = [time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
print(json.dumps([child.returncode, *figures, told.decode(errors="replace")]))
"""
"""Starts a program and measures it, from a process that is small itself: a child's peak memory is
never less than that of the process that started it."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One fetch."""

    seconds: float
    cpu: float
    """Seconds, user and system."""
    memory: float
    """MiB at the peak."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is fetched."""

    name: str
    paths: Sequence[str]
    """On the server."""
    size: int
    """Bytes of all of them."""
    capped: bool = False


Tool = Callable[[Row, Sequence[str], Path], tuple[Sequence[str], str]]
"""The command that fetches URLs into a folder, and what it gets on its standard input."""


def main() -> None:
    """Serve, fetch, time and print."""
    options = arguments()
    if options.child:
        child(options.child, json.load(sys.stdin))
        return
    if options.serve:
        serve(Path(options.serve))
        return
    # Loaded late: a child needs none of it, and its memory is measured.
    from subjects import machine, print_table, rounds  # noqa: PLC0415

    print(f"Before: {machine()}")
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="comfy-runner-benchmark-", dir=root) as name:
        home = Path(name)
        rows = make_files(home / "served", options.size)
        tools = installed()
        with server(home) as (base_url, can_cap):
            for row in rows:
                if row.capped and not can_cap:
                    print(f"{row.name}: left out, the server cannot limit a connection.")
                    continue
                figures: dict[str, list[Figures]] = {name: [] for name in tools}
                for tool in rounds(list(tools), options.rounds):
                    figures[tool].append(fetched(tools[tool], row, base_url, home))
                print(f"\n{row.name}")
                print_table(*table(row, figures))
    print(f"\nAfter:  {machine()}")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="fetches of each (default 5)")
    parser.add_argument(
        "--size", type=int, default=1024, help="MiB of the largest file (default 1024)"
    )
    parser.add_argument("--child", choices=["ours", "bare", "hub"], help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or options.size < 1:
        parser.error("--rounds and --size must be 1 or more")
    return options


def make_files(folder: Path, size: int) -> list[Row]:
    """The files, which nothing can compress, and the rows made of them."""
    folder.mkdir()
    block = os.urandom(MIB)
    small, middle = max(size * 5 // 1024, 1), max(size * 160 // 1024, 1)

    def write(name: str, count: int) -> None:
        with (folder / name).open("wb") as file:
            for number in range(count):
                file.write(number.to_bytes(8, "little") + block[8:])

    write("large", size)
    write("middle", middle)
    for number in range(SMALL_FILES):
        write(f"small{number}", small)
    smalls = [f"small{number}" for number in range(SMALL_FILES)]
    limit = f"each connection at most {CAP}iB/s"
    return [
        Row(f"1 x {size} MiB", ["large"], size * MIB),
        Row(f"{SMALL_FILES} x {small} MiB", smalls, SMALL_FILES * small * MIB),
        Row(f"1 x {middle} MiB, {limit}", ["capped/middle"], middle * MIB, capped=True),
        Row(f"1 x {size} MiB, {limit}", ["capped/large"], size * MIB, capped=True),
    ]


NGINX = """
worker_processes {cores};
daemon off;
pid {home}/nginx.pid;
error_log {home}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {home}/served;
    location /capped/ {{ alias {home}/served/; limit_rate {cap}; }}
  }}
}}
"""


@contextmanager
def server(home: Path) -> Iterator[tuple[str, bool]]:
    """The base URL of a server for the folder `served`, and whether it can limit a connection."""
    from subjects import local_session  # noqa: PLC0415

    from comfy_runner.comfyui.process import free_port  # noqa: PLC0415

    port = free_port()
    nginx = shutil.which("nginx")
    if nginx:
        settings = home / "nginx.conf"
        cores = os.cpu_count() or 1
        settings.write_text(NGINX.format(home=home, port=port, cores=cores, cap=CAP))
        # Its workers may run as somebody else.
        home.chmod(0o755)
        command = [nginx, "-e", f"{home}/nginx.log", "-c", str(settings)]
    else:
        command = [sys.executable, __file__, "--serve", f"{home}/served:{port}"]
    process = subprocess.Popen(command)  # noqa: S603
    base_url = f"http://127.0.0.1:{port}"
    try:
        with local_session() as session:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with suppress(OSError):
                    session.get(f"{base_url}/small0", timeout=5).raise_for_status()
                    break
                with suppress(subprocess.TimeoutExpired):
                    sys.exit(f"The server ended with exit code {process.wait(0.05)}.")
        yield base_url, bool(nginx)
    finally:
        process.terminate()
        process.wait(20)


def serve(place: Path) -> None:
    """Serve a folder until SIGTERM; `place` is `folder:port`."""
    from aiohttp import web  # noqa: PLC0415

    folder, _, port = str(place).rpartition(":")
    app = web.Application()
    app.router.add_static("/", folder)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None)


def installed() -> Mapping[str, Tool]:
    """The tools that are there."""
    tools: dict[str, Tool] = {"ours": python("ours"), "ours, bare": python("bare")}
    if pget := shutil.which("pget"):
        tools["pget"] = lambda _, urls, folder: pget_command(pget, [], urls, folder)
        tools["pget tuned"] = lambda row, urls, folder: pget_command(
            pget, ["-m", "8M", "-c", "32" if row.capped else "4"], urls, folder
        )
    if curl := shutil.which("curl"):
        tools["curl"] = lambda _, urls, folder: (
            [
                curl,
                "--silent",
                "--show-error",
                "--parallel",
                "--parallel-max",
                "8",
                "--config",
                "-",
            ],
            "".join(f'url = "{url}"\noutput = "{folder / str(n)}"\n' for n, url in enumerate(urls)),
        )
    if aria2 := shutil.which("aria2c"):
        tools["aria2c"] = lambda _, urls, folder: (
            [
                *(aria2, "--quiet", "--file-allocation=none", "--input-file=-", f"--dir={folder}"),
                *("-x", "16", "-s", "16", "-j", "16", "-k", "8M"),
            ],
            "".join(f"{url}\n out={n}\n" for n, url in enumerate(urls)),
        )
    if importlib.util.find_spec("huggingface_hub"):
        tools["hub"] = python("hub")
    return tools


def python(name: str) -> Tool:
    """A tool that is a child of this program."""
    return lambda _, urls, folder: (
        [sys.executable, __file__, "--child", name],
        json.dumps({"urls": urls, "folder": str(folder)}),
    )


def pget_command(
    pget: str, options: Sequence[str], urls: Sequence[str], folder: Path
) -> tuple[Sequence[str], str]:
    """pget with a list on its standard input."""
    pid_file = f"--pid-file={folder.parent / 'pget.pid'}"
    command = [pget, "--log-level", "error", pid_file, *options, "multifile", "-"]
    return command, "".join(f"{url} {folder / str(n)}\n" for n, url in enumerate(urls))


def fetched(tool: Tool, row: Row, base_url: str, home: Path) -> Figures:
    """Fetch once, into a folder of its own that is gone afterwards."""
    folder = home / "fetched"
    folder.mkdir()
    urls = [f"{base_url}/{path}" for path in row.paths]
    command, given = tool(row, urls, folder)
    said = home / "given"
    said.write_text(given)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-I", "-S", "-c", LAUNCH, str(said), *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    code, seconds, cpu, memory, told = json.loads(done.stdout)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".state")
    shutil.rmtree(folder)
    if code or size != row.size:
        sys.exit(f"{command[0]}: exit code {code}, {size} of {row.size} bytes.\n{told}")
    if told.startswith("{"):
        own = json.loads(told)
        seconds, cpu = own["seconds"], own["cpu"]
    return Figures(seconds, cpu, memory)


def child(name: str, given: Mapping[str, object]) -> None:
    """Fetch with a Python tool, and print what it took."""
    urls, folder = list(map(str, given["urls"])), Path(str(given["folder"]))  # type: ignore[call-overload]
    fetch = load_hub() if name == "hub" else load_ours(hashing=name == "ours")
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    begun = time.perf_counter()
    fetch(urls, folder)
    seconds = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "cpu": used.ru_utime + used.ru_stime - before}))


def load_ours(*, hashing: bool) -> Callable[[Sequence[str], Path], None]:
    """Our engine, with the first requests that come before it."""
    from comfy_runner.fetch.download import Patience  # noqa: PLC0415
    from comfy_runner.fetch.lines import Lines  # noqa: PLC0415
    from comfy_runner.fetch.probe import probe  # noqa: PLC0415
    from comfy_runner.fetch.ranged import download  # noqa: PLC0415
    from comfy_runner.fetch.transfer import Delivered, Outcome, Remote, Transfer  # noqa: PLC0415

    never = threading.Event()
    patience = Patience()
    lines = Lines(never, connect=patience.connect, stall=patience.stall)

    def found(url: str) -> Remote:
        return probe(url, credentials={}, cancelled=never, patience=patience, lines=lines)

    def done(transfer: Transfer, outcome: Outcome) -> None:
        if not isinstance(outcome, Delivered):
            raise outcome
        if hashing != (outcome.sha256 is not None):
            raise AssertionError(f"{transfer.key} was hashed, or was not.")

    def fetch(urls: Sequence[str], folder: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            remotes = list(pool.map(found, urls))
        download(
            [
                Transfer(key=str(number), remote=remote, part=folder / str(number))
                for number, remote in enumerate(remotes)
            ],
            done=done,
            report=lambda *_: None,
            cancelled=never,
            patience=patience,
            probe_again=lambda remote: found(remote.url),
            hashing=hashing,
        )

    return fetch


def load_hub() -> Callable[[Sequence[str], Path], None]:
    """What huggingface_hub does for a file that is in no Xet store."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub.file_download import http_get  # noqa: PLC0415

    def one(number: int, url: str, folder: Path) -> None:
        with (folder / str(number)).open("wb") as file:
            http_get(url, file)

    def fetch(urls: Sequence[str], folder: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(one, n, url, folder) for n, url in enumerate(urls)]:
                future.result()

    return fetch


def table(
    row: Row, figures: Mapping[str, Sequence[Figures]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows, one for each tool."""
    medians = {name: statistics.median(f.seconds for f in all_) for name, all_ in figures.items()}
    best = min(medians.values())
    baseline = medians.get("pget")
    lines = []
    for name, all_ in figures.items():
        median = medians[name]
        lines.append(
            (
                name,
                str(len(all_)),
                f"{min(f.seconds for f in all_):.2f}",
                f"{median:.2f}",
                f"{row.size / MIB / median:.0f}",
                f"{statistics.median(f.cpu for f in all_):.2f}",
                f"{max(f.memory for f in all_):.0f}",
                f"{median / baseline:.2f}" if baseline else "-",
                f"{median / best:.2f}",
            )
        )
    head = ("tool", "runs", "min s", "median s", "MiB/s", "cpu s", "peak MiB", "to pget", "to best")
    return head, lines


if __name__ == "__main__":
    main()
