"""What the `setup` of every model does: trained weights in place, and a ComfyUI that runs.

What takes long to import is imported when it is needed, for `start` has torch imported meanwhile.
"""
# ruff: noqa: PLC0415

import logging
import os
import time
from typing import TYPE_CHECKING

from comfy_runner.comfyui.process import import_ahead
from comfy_runner.config import Config

if TYPE_CHECKING:
    from comfy_runner.runner import Runner
    from comfy_runner.serving.trained import Installed

log = logging.getLogger(__name__)


def start(
    weights: str | None = None, config: Config | None = None
) -> "tuple[Runner, Installed | None]":
    """A started runner for Cog's worker, and what of a training is in place for it.

    `weights` is what Cog hands to `setup`, see `trained.install`. Without a `config` the settings
    are those of the environment; so are the tokens for what is fetched ahead. Keep both results:
    the weights stay on the disk for as long. The log tells how long each phase took.

    Raises: as `install`, `Runner` and `Runner.start`; `StartFailed` also for another Cog.
    """
    began = time.monotonic()
    config = config or Config.from_environment()
    import_ahead(config)

    from comfy_runner.runner import Runner
    from comfy_runner.serving import prediction
    from comfy_runner.serving.trained import install

    prediction.prepare()
    trained = install(weights, config) if weights else None
    if trained is not None:
        log.info("setup: trained weights %.2f s", time.monotonic() - began)
    runner = Runner(config)
    runner.start(credentials=own_tokens())
    for line in runner.timeline.lines(runner.process.phases, began):
        log.info("setup: %s", line)
    return runner, trained


def own_tokens() -> dict[str, str]:
    """Host to token, as far as the environment has tokens for what no caller asks for."""
    from comfy_runner.serving import prediction

    variables = {name.upper(): host for name, host in prediction.TOKEN_HOSTS.items()}
    return prediction.tokens_in(os.environ, variables)
