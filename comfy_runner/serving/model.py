"""A model of one workflow: it owns ComfyUI and the document, and its predict.py calls it."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_runner.config import Config
from comfy_runner.documents import source
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.values import FileName
from comfy_runner.runner import Runner
from comfy_runner.runs.files import GivenFile, numbered
from comfy_runner.runs.media import OutputFormat
from comfy_runner.runs.plan import needed_models
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request
from comfy_runner.serving import prediction, uploads
from comfy_runner.serving.starting import own_tokens, start
from comfy_runner.weights.progress import Steps
from comfy_runner.weights.store import Addressed

FILES = "files"
"""Folder beside the document with files that come with the model: each is known by its name."""


class Model:
    """A started ComfyUI and the workflow that it runs, over and over."""

    def __init__(
        self,
        document: str | Path,
        *,
        outputs: Sequence[str] = (),
        fetch: bool = True,
        weights: str | None = None,
        config: Config | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Boot ComfyUI and have the weights of the workflow in place.

        `document` is a file with the workflow, as `documents.source` reads it; seen from the
        working directory. `outputs` are ids of the nodes whose results count; without any, those
        of the workflow's app or else all. With `fetch` off, weights come when a prediction needs
        them. `weights` is the address or path of trained weights, see `trained.install`. Without a
        `config` the settings are those of the environment; a `runner`, which must be started, is
        used as it is in place of all this.

        Raises: `InvalidInput` for a document that is not there, `InvalidWorkflow` for what is none;
        `StartFailed`; `UnknownModel` and `DownloadFailed` for weights.
        """
        self.document = _read(Path(document))
        self._outputs = tuple(outputs)
        self._files = _given(Path(document).parent / FILES)
        is_own = runner is None
        if runner is None:
            config = config or Config.from_environment()
            # While ComfyUI boots; what goes wrong is told by the fetch below. It does not know of
            # the chosen outputs, and would fetch what only the others need.
            if fetch and not self._outputs:
                config = replace(config, preload=(*config.preload, str(document)))
            runner, self._trained = start(weights, config)
            if self._trained is not None and self._trained.workflow is not None:
                print("The workflow that came with the weights is left: the model has its own.")
        self.runner = runner
        try:
            if fetch:
                self._fetch()
        except BaseException:
            if is_own:
                runner.close()
            raise

    def is_healthy(self) -> bool:
        """Whether predictions can be taken; if not, the log tells why."""
        return prediction.is_healthy(self.runner)

    def run(
        self,
        values: Mapping[str, Any],
        *,
        record_metric: Callable[[str, Any], None],
        seed: int | None = None,
        output_format: OutputFormat = "original",
        output_quality: int = 95,
        timeout: float | None = None,
        **tokens: Any,
    ) -> Iterator[Path]:
        """Run the workflow with some values; yields each result file as soon as it is made.

        `values` is address to value: None leaves what the workflow itself has, and a path is a file
        as Cog hands it over. `seed` is for all seeds that are not among the values, None for a
        random one. `timeout` is in seconds, None for the setting. `tokens` are `cog.Secret`s (see
        `prediction.TOKEN_HOSTS`). Result files stay until the next run.

        Raises: as `Runner.run`, and as `uploads.received` for the files.
        """
        started = time.monotonic()
        config = self.runner.config
        given = {name: value for name, value in values.items() if isinstance(value, os.PathLike)}
        # One file may go to several places, and is received once.
        firsts: dict[int, str] = {}
        for name, value in given.items():
            firsts.setdefault(id(value), name)
        received = uploads.received(
            {name: given[name] for name in firsts.values()},
            timeout=timeout or config.run_timeout,
            config=config,
        )
        # Those of the model go first: the workflow knows them by their names.
        files = numbered([*self._files, *received.values()])
        laid = dict(zip(received, files[len(self._files) :], strict=True))
        names = {name: laid[firsts[id(value)]] for name, value in given.items()}
        request = Request(
            document=self.document,
            values={
                name: FileName(names[name].name) if name in names else value
                for name, value in values.items()
                if value is not None
            },
            files=files,
            # To JSON Schema 2.0 is an integer, and Cog 0.23 hands it over as a float.
            seed=None if seed is None else int(seed),
            outputs=self._outputs,
            output_format=output_format,
            output_quality=int(output_quality),
            timeout=timeout,
            started=started,
            credentials=prediction.credentials(tokens),
        )
        narrator = prediction.Narrator(record_metric)
        with closing(self.runner.run(request)) as updates:
            for update in updates:
                narrator.tell(update)
                if isinstance(update, Output):
                    yield update.path

    def _fetch(self) -> None:
        """Have the weights in place that the workflow needs as it stands, and tell how it goes."""
        runner = self.runner
        models = needed_models(
            self.document,
            catalog=runner.catalog(),
            manifest=runner.manifest,
            on_disk=runner.store.listing,
            outputs=self._outputs,
        )
        for note in models.notes:
            print(prediction.printable(note), flush=True)
        fetching = runner.store.ensure(
            tuple(models.missing.values()),
            [Addressed(asked.address, asked.folder, asked.sha256) for asked in models.asked],
            credentials=own_tokens(),
        )
        narrator = prediction.Narrator(_no_metric)
        with closing(fetching):
            for update in Steps(fetching):
                narrator.tell(update)


def _no_metric(_: str, __: Any) -> None:
    """In `setup` there is no prediction that could have one."""


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_file():
        return source.read(path, field=str(path))
    what = f"There is no file {path.absolute()}."
    raise InvalidInput([Problem("no_workflow", what, "Put the model's workflow there.")])


def _given(folder: Path) -> tuple[GivenFile, ...]:
    """The files that come with the model."""
    if not folder.is_dir():
        return ()
    return tuple(
        GivenFile(path, path.name)
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    )
