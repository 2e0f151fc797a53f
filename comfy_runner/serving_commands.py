"""`comfy-runner serve`, `predict` and `schema`: a project's predict.py under Cog's own server."""

import ipaddress
import json
import os
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import requests
import typer

from comfy_runner.command_line import JsonOption, errors_as_json, make_folder, refuse
from comfy_runner.config import Config
from comfy_runner.console import errors
from comfy_runner.errors import Cancelled, InvalidInput
from comfy_runner.publishing.compatibility import is_streaming
from comfy_runner.publishing.listed import names
from comfy_runner.publishing.predictor import MARK, refresh_choices
from comfy_runner.serving import schema
from comfy_runner.serving.given import typed
from comfy_runner.serving.returned import Results, failure
from comfy_runner.serving.server import UNFIT, CogServer, ServerFailed, told, unfit
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.store import read_manifest

ProjectOption = Annotated[
    Path | None,
    typer.Option(
        "--project",
        metavar="DIR",
        help="Folder with predict.py and cog.yaml. Default: the one here, else comfy-runner's own.",
        show_default=False,
    ),
]


def serve(
    host: Annotated[str, typer.Option(help="IP address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 5000,
    project: ProjectOption = None,
) -> None:
    """Serve predictions over HTTP with Cog's own server, without Docker."""
    config = _configured(project)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        refuse("bad_host", f"{host!r} is no IP address.", "Use 127.0.0.1 or 0.0.0.0.", "--host")
    try:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET  # noqa: PLR2004
        socket.create_server((host, port), family=family).close()
    except OSError as err:
        what = f"{host}:{port} cannot be listened on: {err.strerror}."
        refuse("bad_port", what, "Choose another port.", "--port")
    _renew(config)
    # Cog starts its worker as plain `python`, so ours has to be the first one on PATH.
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "LOG_FORMAT": os.environ.get("LOG_FORMAT", "console"),
    }
    os.chdir(config.project)
    errors.print(f"Serving on http://{host}:{port} once ComfyUI is up.")
    errors.print("Ctrl-C ends it, after the run that is open then.")
    command = [sys.executable, "-m", "cog.server.http", "--host", host]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted


def predict(
    value: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="An input of the model; '@path' sends a file. Repeatable, for a list too.",
        ),
    ] = None,
    project: ProjectOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output"),
    setup_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for setup, which may fetch weights.")
    ] = 7200.0,
    as_json: JsonOption = False,
) -> None:
    """Make one prediction as `cog predict` does, through Cog's own server, without Docker.

    The log goes to standard error, the path of each result, or what is no file, to standard
    output as it comes. Ctrl-C cancels. Exit: 0 done, 2 the inputs do not fit, 3 the run failed,
    4 setup or the server failed.
    """
    config = _configured(project)
    with errors_as_json(as_json):
        _renew(config)
        document = json.loads((config.project / schema.SCHEMA).read_bytes())
        values = typed(value or (), document)
        make_folder(out)
        shown = _Shown(Results(out), quiet=as_json)
        errors.print(f"Starting the model of {config.project} ...", markup=False, highlight=False)
        with CogServer(config.project, hear=_print_server_line) as server:
            server.wait_ready(setup_timeout)
            events = _events(server, values, streaming=is_streaming(document))
            try:
                with closing(events):
                    for name, content in events:
                        shown.tell(name, content)
            except requests.RequestException as err:
                raise ServerFailed(f"The server broke the answer off: {err}") from err
            shown.check_ended()
    if as_json:
        print(json.dumps({**shown.metrics, "outputs": shown.results.outputs}))


def write_schema(
    check_only: Annotated[
        bool, typer.Option("--check", help="Only tell whether the files are up to date.")
    ] = False,
    project: ProjectOption = None,
) -> None:
    """Write .cog/openapi_schema.json, which the Cog server needs, from predict.py.

    Choices in predict.py that come from a model folder or a group of the manifest are renewed
    first. Run this before `cog build`.
    """
    config = _configured(project)
    if not check_only:
        _renew_choices(config)
        print(schema.write(config.project))
        return
    hint = "Run comfy-runner schema."
    if not _has_its_choices(config):
        what = "There is something else to choose from now than predict.py says."
        refuse("old_choices", what, hint, "predict.py")
    if not schema.is_current(config.project):
        what = "predict.py and .cog/openapi_schema.json differ."
        refuse("old_schema", what, hint, "predict.py")


def _has_its_choices(config: Config) -> bool:
    """Whether predict.py has the choices that there are.

    Where a source has none at all, nothing is known of them: its models may be on other machines.
    """
    try:
        text = _with_new_choices(config)
    except InvalidInput as err:
        if any(problem.code != "no_choices" for problem in err.problems):
            raise
        errors.print(f"Note: the choices in predict.py are not looked at: {err}", markup=False)
        return True
    return text == (config.project / "predict.py").read_bytes().decode()


def _renew(config: Config) -> None:
    """Write what is old of the project's choices and schema anew, to serve it.

    Choices that cannot be made anew stay: setup may be what fetches the models.
    """
    try:
        _renew_choices(config)
    except InvalidInput as err:
        errors.print(f"Note: the choices in predict.py stay as they are: {err}", markup=False)
    if not schema.is_current(config.project):
        schema.write(config.project)


def _renew_choices(config: Config) -> None:
    """Write the choices in predict.py anew that come from a folder or group. Raises:
    `InvalidInput`."""
    path = config.project / "predict.py"
    text = _with_new_choices(config)
    if text == path.read_bytes().decode():
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode())
        part.chmod(path.stat().st_mode & 0o777)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    errors.print("Note: the choices in predict.py were written anew, from what is there now.")


def _with_new_choices(config: Config) -> str:
    """The text of predict.py with the choices as they have to be now. Raises: `InvalidInput`."""
    try:
        text = (config.project / "predict.py").read_bytes().decode()
    except UnicodeDecodeError as err:
        refuse("unreadable_file", f"It is not UTF-8: {err}.", "Save it as UTF-8.", "predict.py")
    if not MARK.search(text):
        return text
    folders = ModelFolders(config.models)
    manifest = read_manifest(config.manifest) if "group:" in text else Manifest()
    try:
        return refresh_choices(text, lambda source: names(source, folders, manifest))
    except SyntaxError as err:
        what = f"It is not Python: {err.msg} (line {err.lineno})."
        refuse("syntax_error", what, "Correct it there.", "predict.py")


class _Shown:
    """One prediction as it is shown: its log on standard error, its results on standard output."""

    def __init__(self, results: Results, *, quiet: bool) -> None:
        """With `quiet` the results are only kept."""
        self.results = results
        self.metrics: Mapping[str, Any] = {}
        """What the prediction measured, once it has ended."""
        self._quiet = quiet
        self._streamed = False
        self._ended = False

    def tell(self, event: str, content: Any) -> None:
        """Show one event. Raises: as `failure` tells, for a prediction that did not succeed."""
        match event:
            case "log":
                self.results.hear(content["data"])
                errors.print(content["data"].rstrip("\n"), markup=False)
            case "output":
                self._streamed = True
                self._keep(content["chunk"])
            case "completed":
                self._end(content)
            case "error":
                raise ServerFailed(f"The answer broke off: {content}")

    def _end(self, body: Mapping[str, Any]) -> None:
        match body["status"]:
            case "succeeded":
                self.metrics = body.get("metrics", {})
                if not self._streamed and body.get("output") is not None:
                    output = body["output"]
                    for each in output if isinstance(output, list) else [output]:
                        self._keep(each)
            case "canceled":
                raise Cancelled("Somebody else cancelled the prediction.")
            case _:
                raise failure(body.get("error") or "The prediction failed without a message.")
        self._ended = True

    def check_ended(self) -> None:
        """Raises: `ServerFailed` for an answer that ended before the prediction."""
        if not self._ended:
            raise ServerFailed("The answer ended before the prediction did: the worker is gone.")

    def _keep(self, output: Any) -> None:
        kept = self.results.keep(output)
        if not self._quiet:
            print(kept if isinstance(kept, str) else json.dumps(kept), flush=True)


def _events(
    server: CogServer, values: Mapping[str, Any], *, streaming: bool
) -> Generator[tuple[str, Any]]:
    """The events of one prediction; of a model that does not stream, what comes at its end.

    Closing it cancels the prediction. Raises: `InvalidInput` for what the schema refuses.
    """
    if streaming:
        yield from server.stream(values, None)
        return
    reply = server.predict(values, None)
    if reply.status == UNFIT:
        raise InvalidInput(unfit(reply.body))
    if "status" not in reply.body:
        raise ServerFailed(f"HTTP {reply.status}: {reply.body}")
    if logs := reply.body.get("logs"):
        yield "log", {"data": logs}
    yield "completed", reply.body


def _print_server_line(line: str) -> None:
    if (text := told(line)) is not None:
        errors.print(text, markup=False)


def _configured(project: Path | None) -> Config:
    """The settings of a project: what lies in the folder of this one lies there in its own."""
    config = Config.from_environment()
    here = Path.cwd()
    folder = (project or here).absolute()
    if not (folder / "predict.py").is_file() or not (folder / "cog.yaml").is_file():
        if project is not None:
            what = f"{project} holds no predict.py and cog.yaml."
            refuse("no_project", what, "Give the folder of a Cog model.", "--project")
        return config
    moved = {
        name: folder / path.relative_to(config.project)
        for name in ("home", "comfyui", "models", "manifest", "custom_nodes")
        if (path := getattr(config, name)).is_relative_to(config.project)
    }
    return replace(config, project=folder, **moved)
