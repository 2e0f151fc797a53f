"""The Cog model: any ComfyUI workflow in, its result files out, each as soon as it is made."""

from contextlib import closing
from typing import Iterator

import cog
from cog import BaseRunner, Input, Path, Secret

from comfy_runner import serving


class Predictor(BaseRunner):
    def setup(self, weights: str | None = None) -> None:
        """Boot ComfyUI, with the weights of a training where there are some."""
        self.runner, self.trained = serving.start(weights)

    def healthcheck(self) -> bool:
        """Whether predictions can be taken."""
        return serving.is_healthy(self.runner)

    @cog.streaming
    def run(
        self,
        workflow_json: str = Input(
            description="The workflow, as ComfyUI's editor saves or exports it: its JSON, or an http(s) URL or data URI of it or of a picture or other file that ComfyUI made.",
            default="",
        ),
        workflow_file: Path | None = Input(
            description="The workflow as an uploaded file, instead of workflow_json: JSON, or a picture, video, recording or model that ComfyUI saved with its workflow in it.",
            default=None,
        ),
        prefer: str = Input(
            description="Which graph runs where a file holds two: prompt is the one that made it, workflow is the editor's.",
            choices=["prompt", "workflow"],
            default="prompt",
        ),
        inputs: str = Input(
            description="""Values to set in the workflow, as JSON: {"6.text": "a fox", "KSampler.steps": 20}. An address is NODE.INPUT, where NODE is an id, a title or a class_type; or a name that the workflow's app shows. Models and files may be URLs.""",
            default="",
        ),
        input_file: Path | None = Input(
            description="A file for the workflow. It is known by its own name and as input.png, input.mp4 and so on; a zip or tar is unpacked.",
            default=None,
        ),
        input_files: list[Path] | None = Input(
            description="More files for the workflow, each known by its own name.",
            default=None,
        ),
        seed: int | None = Input(
            description="Seed for every seed of the workflow; blank for a random one, which the log and the metrics tell.",
            default=None,
            ge=0,
        ),
        randomise_seeds: bool = Input(
            description="Use a random seed when seed is blank. Switch off to keep the workflow's own seeds.",
            default=True,
        ),
        output_format: str = Input(
            description="Format of pictures; original is as the workflow made them. What a format cannot hold, such as transparency in jpg, stays original.",
            choices=["original", "webp", "jpg", "png"],
            default="original",
        ),
        output_quality: int = Input(
            description="Quality of jpg and webp pictures; 100 makes webp lossless.",
            default=95,
            ge=0,
            le=100,
        ),
        return_temp_files: bool = Input(description="Return temporary files too.", default=False),
        all_outputs: bool = Input(description="Return what its app hides, too.", default=False),
        receipt: bool = Input(description="Return receipt.json as well.", default=False),
        force_reset_cache: bool = Input(description="Run cached nodes again.", default=False),
        timeout: float | None = Input(
            description="Seconds after which the run is stopped; blank for the server's limit.",
            default=None,
            ge=1,
        ),
        hf_token: Secret | None = Input(
            description="Hugging Face token for private and gated weights; sent to huggingface.co only.",
            default=None,
        ),
        civitai_token: Secret | None = Input(
            description="CivitAI token for private weights; sent to civitai.com only.",
            default=None,
        ),
    ) -> Iterator[Path]:
        """Run the workflow and yield each result file the moment its node has made it."""
        given = dict(locals(), config=self.runner.config, trained=self.trained)
        del given["self"]
        narrator = serving.Narrator(self.record_metric)
        with closing(self.runner.run(serving.request(**given))) as updates:
            for update in updates:
                narrator.tell(update)
                if isinstance(update, serving.Output):
                    yield Path(update.path)
