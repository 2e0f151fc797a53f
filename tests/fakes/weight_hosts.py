"""The hosts of weights on one local server: their APIs, in the shapes in which they answer."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from comfy_runner.weights.hosts.places import Hosts


@dataclass
class Told:
    """How one path is answered."""

    answer: Any = None
    """Sent as JSON, or as it is where it is bytes."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    token: str = ""
    """What Authorization must carry; otherwise the path does not exist."""
    failures: list["Told"] = field(default_factory=list)
    """Answers to the first requests."""


@dataclass(frozen=True)
class Question:
    """One request that came in."""

    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


class WeightHosts:
    """Answers at `hosts`; what was asked stands in `asked`.

    Hugging Face is at 127.0.0.1, all others at localhost, so that tokens can be told apart.
    """

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self.asked: list[Question] = []
        handler = type("Handler", (_Handler,), {"hosts": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        port = self.http.server_address[1]
        self.hub_url = f"http://127.0.0.1:{port}/hub"
        self.hosts = Hosts(
            hf=self.hub_url,
            civitai=f"http://localhost:{port}/civitai",
            replicate=f"http://localhost:{port}/replicate",
            github_api=f"http://localhost:{port}/github",
        )

    def tell(self, path: str, answer: Any = None, **how: Any) -> Told:
        """Answer a path, such as `/hub/api/models/o/r`, in this way."""
        self.told[path] = Told(answer, **how)
        return self.told[path]

    def add_repository(
        self,
        repo_id: str,
        files: Mapping[str, int],
        *,
        revision: str = "main",
        kind: str = "models",
        gated: str | bool = False,
        license: str = "apache-2.0",  # noqa: A002 - the API's own word
        tags: Sequence[str] = (),
        **how: Any,
    ) -> Told:
        """A repository with files of these sizes; the ones above 1000 bytes are in LFS."""
        siblings: list[dict[str, Any]] = []
        for path, size in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": "0" * 40}
            if size > 1000:
                lfs = {"sha256": digest(path), "size": size, "pointerSize": 135}
                entry = {**entry, "lfs": lfs}
            siblings.append(entry)
        answer = {
            "_id": "66aaa908fc35e079a941470d",
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit(repo_id),
            "private": False,
            "gated": gated,
            "disabled": False,
            "tags": ["text-to-image", *tags, f"license:{license}"],
            "cardData": {"license": license},
            "siblings": siblings,
        }
        return self.tell(f"/hub/api/{kind}/{repo_id}/revision/{revision}", answer, **how)

    def add_version(
        self, model: int, version: int, files: Sequence[Mapping[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """A version of a model on CivitAI, as `/api/v1/model-versions/ID` has it."""
        kind = more.pop("kind", "LORA")
        listed = {
            "id": version,
            "modelId": model,
            "name": "v1.0",
            "air": f"urn:air:sdxl:{kind.lower()}:civitai:{model}@{version}",
            "status": "Published",
            "availability": "Public",
            "publishedAt": "2025-01-01T00:00:00.000Z",
            "files": list(files),
            "downloadUrl": f"https://civitai.com/api/download/models/{version}",
            **more,
        }
        named = {"name": "A style", "type": kind, "nsfw": False, "poi": False}
        self.tell(f"/civitai/api/v1/model-versions/{version}", {**listed, "model": named})
        return listed

    def add_model(self, model: int, versions: Sequence[Any], *, kind: str = "LORA") -> Told:
        """A model on CivitAI, as `/api/v1/models/ID` has it."""
        return self.tell(
            f"/civitai/api/v1/models/{model}",
            {"id": model, "name": "A style", "type": kind, "modelVersions": versions},
        )

    def add_release(self, tag: str, assets: Mapping[str, int], *, token: str = "") -> str:
        """A release of `o/r` on GitHub. Returns the URL under which the files are stored."""
        base = "/github/repos/o/r/releases"
        listed = []
        stored = f"http://127.0.0.1:{self.http.server_address[1]}/stored"
        for number, (name, size) in enumerate(assets.items(), 1):
            listed.append(
                {
                    "url": f"https://api.github.com/repos/o/r/releases/assets/{number}",
                    "browser_download_url": f"https://github.com/o/r/releases/download/{tag}/{name}",
                    "id": number,
                    "name": name,
                    "state": "uploaded",
                    "size": size,
                    "digest": f"sha256:{digest(name)}",
                }
            )
            headers = {"Location": f"{stored}/{number}?sig=s3cret&se=2030"}
            self.tell(f"{base}/assets/{number}", status=302, headers=headers, token=token)
            self.tell(f"/stored/{number}", b"0" * size)
        answer = {"id": 1, "tag_name": tag, "assets": listed}
        self.tell(f"{base}/tags/{tag}", answer, token=token)
        self.tell(f"{base}/latest", answer, token=token)
        return stored


def digest(name: str) -> str:
    """The sha256 that the hosts state for a file of this name."""
    return hashlib.sha256(name.encode()).hexdigest()


def commit(repo_id: str) -> str:
    """The commit that all branches of a repository stand for."""
    return hashlib.sha1(repo_id.encode(), usedforsecurity=False).hexdigest()


def civitai_file(
    number: int, version: int, name: str = "style.safetensors", **more: Any
) -> dict[str, Any]:
    """A file of a version on CivitAI; `format`, `size` and `fp` go into its metadata."""
    traits = {"format": "SafeTensor", "size": None, "fp": None}
    metadata = {key: more.pop(key, default) for key, default in traits.items()}
    kind = more.pop("type", "Model")
    query = f"type={kind}&format={metadata['format']}".replace(" ", "%20")
    return {
        "id": number,
        "sizeKB": 223101.33,
        "name": name,
        "type": kind,
        "metadata": metadata,
        "pickleScanResult": "Success",
        "virusScanResult": "Success",
        "hashes": {"AutoV2": "0A1B2C3D4E", "SHA256": digest(name).upper(), "CRC32": "01234567"},
        "downloadUrl": f"https://civitai.com/api/download/models/{version}?{query}",
        **more,
    }


class _Handler(BaseHTTPRequestHandler):
    hosts: WeightHosts

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        question = Question(path, query, dict(self.headers.items()))
        self.hosts.asked.append(question)
        told = self.hosts.told.get(path)
        if told is None or (told.token and question.token != told.token):
            told = self.missing(path, question)
        elif told.failures:
            told = told.failures.pop(0)
        body = told.answer if isinstance(told.answer, bytes) else json.dumps(told.answer).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", **told.headers}
        self.send_response(told.status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def missing(self, path: str, question: Question) -> Told:
        """How each host says that there is nothing, or nothing for this caller."""
        if path.startswith("/hub/") and not question.token:
            headers = {"X-Error-Code": "RepoNotFound"}
            return Told({"error": "Invalid username or password."}, 401, headers)
        if path.startswith("/hub/"):
            return Told({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/github/"):
            return Told({"message": "Not Found", "status": "404"}, 404)
        return Told({"error": "No model found"}, 404)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[WeightHosts]:
    """Hosts that listen until the end of the block."""
    server = WeightHosts()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join(10)
