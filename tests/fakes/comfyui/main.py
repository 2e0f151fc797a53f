"""Stands in for ComfyUI's main.py where a fault is wanted that the real one does not have.

The fault is named by `--fault`, after the arguments of the runner.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--base-directory", type=Path)
parser.add_argument("--fault")
arguments, _ = parser.parse_known_args()


def dies():
    for number in range(300):
        print("line", number)
    print("\033[31mno \033[1mmodule\033[0m named torch", file=sys.stderr)
    sys.exit(3)


def deaf():
    print("loading", end="\r")
    print("still loading")
    signal.pause()


def stubborn():
    """Ignores what it can, and leaves processes that do so too.

    All of them hold the named pipe `alive` of the base directory open until they are gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    alive = os.open(arguments.base_directory / "alive", os.O_WRONLY)
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], pass_fds=[alive])
    serve()


def port_taken():
    """The port is lost twice."""
    starts = arguments.base_directory / "starts"
    count = int(starts.read_text()) + 1 if starts.exists() else 1
    starts.write_text(str(count))
    if count < 3:
        print(f"Port {arguments.port} is already in use on address 127.0.0.1. Please close")
        sys.exit(1)
    serve()


def port_always_taken():
    print(f"Port {arguments.port} is already in use on address 127.0.0.1. Please close")
    sys.exit(1)


def stranger():
    """Another ComfyUI has the port."""
    serve(guard=1)


def touchy():
    """Dies of every question but the one for its health."""
    serve(dies=True)


def serve(guard=None, dies=False):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            if dies and not self.path.endswith("/health"):
                os._exit(9)
            gpu = {"name": "cuda:0 Some GPU : native", "vram_total": 2, "vram_free": 1}
            body = {"worker_alive": True, "guard": os.getppid() if guard is None else guard}
            body |= {"devices": [gpu]} if self.path == "/system_stats" else {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            print("asked for", self.path, flush=True)

    HTTPServer(("127.0.0.1", arguments.port), Health).serve_forever()


globals()[arguments.fault]()
