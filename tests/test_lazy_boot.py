"""A ComfyUI that puts off imports, beside one that does not: nobody can tell them apart."""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import av
import pytest
import requests
from graphs import bundled, node
from loras import lora

from comfy_runner.comfyui.client import ComfyClient
from comfy_runner.comfyui.inside import OUR_PACK
from comfy_runner.comfyui.lazy import DEFERRED
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.runner import Runner
from comfy_runner.runs.results import Output
from comfy_runner.runs.run import Request

HERE = Path(__file__).resolve().parent
PACKS = HERE / "custom_nodes" / "imports.disabled"
BOOT_TIMEOUT = 180.0


@dataclass(frozen=True)
class Server:
    """A started ComfyUI."""

    runner: Runner
    at_ready: Mapping[str, Any]
    """What the pack `witness` told as soon as it answered."""

    def get(self, path: str) -> Any:
        """The JSON at a path of its server."""
        return asked(self.runner.process, path)

    def results(self, graph: Mapping[str, Any]) -> dict[str, str]:
        """What each node makes in a run of the graph."""
        updates = self.runner.run(Request(document=graph, randomise_seeds=False))
        return {each.node_id: content(each.path) for each in updates if isinstance(each, Output)}

    def answer(self, code: str) -> Any:
        """What the lines of Python call `answer`, run in a node."""
        text = self.results({"1": node("TestPython", code=dedent(code))})
        return json.loads(text["1"])


def content(path: Path) -> str:
    """What is in a file, without what tells how it was made; all of it, but pixels as a hash."""
    if path.suffix == ".txt":
        return path.read_text()
    with av.open(str(path)) as container:
        parts = [(frame.pts, frame.to_ndarray()) for frame in container.decode()]
    known = hashlib.sha256(b"".join(array.tobytes() for _, array in parts)).hexdigest()
    return f"{[(pts, array.shape, str(array.dtype)) for pts, array in parts]} {known}"


def asked(process: ComfyProcess, path: str) -> Any:
    key = {"Authorization": f"Bearer {process.token}"}
    answer = requests.get(process.base_url + path, headers=key, timeout=60)
    answer.raise_for_status()
    return answer.json()


def settings(config: Config, folder: Path, pack: str, *, lazy: bool) -> Config:
    """Those of a ComfyUI that has one of our packs only; it has the models of all others.

    The witness goes by the name of the pack before which ComfyUI's own modules stay put off.
    """
    packs = config.home / pack
    packs.mkdir(parents=True, exist_ok=True)
    link = packs / f"{OUR_PACK if pack == 'witness' else pack}.py"
    if not link.exists():
        link.symlink_to(PACKS / f"{pack}.py")
    return replace(config, home=folder, custom_nodes=packs, lazy_boot=lazy, fork_server=False)


@pytest.fixture(scope="module")
def config(comfy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    models = tmp_path_factory.mktemp("models")
    (models / "loras").mkdir()
    (models / "loras" / "one.safetensors").write_bytes(lora(1))
    return replace(comfy_config, models=models)


@contextmanager
def server(config: Config) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with Runner(config) as runner:
            yield Server(runner, asked(runner.process, "/tests/modules"))


@pytest.fixture(scope="module")
def plain(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("plain")
    with server(settings(config, folder, "witness", lazy=False)) as started:
        yield started


@pytest.fixture(scope="module")
def lazy(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lazy")
    with server(settings(config, folder, "witness", lazy=True)) as started:
        yield started


def roots() -> dict[str, Any]:
    """Each module that the table names, with its line."""
    return {module: entry for entry in DEFERRED for module in entry.modules.split()}


def is_below(name: str, root: str) -> bool:
    return f"{name}.".startswith(f"{root}.")


OPTIONAL = {"spandrel_extra_arches"}
"""What ComfyUI can do without, and its requirements do not ask for."""

NEVER_ASKED = {"tokenizers"}
"""What only others of the table import; it is there for when ComfyUI does."""

AT_ONCE = {
    "comfy.ldm.chroma.layers",
    "comfy.ldm.chroma.model",
    "comfy.ldm.common_dit",
    "comfy.ldm.depth_anything_3.reference_view_selector",
    "comfy.ldm.flux.layers",
    "comfy.ldm.flux.math",
    "comfy.ldm.flux.model",
    "comfy.ldm.lightricks.model",
    "comfy.ldm.lightricks.symmetric_patchifier",
    "comfy.ldm.modules.attention",
    "comfy.ldm.modules.diffusionmodules",
    "comfy.ldm.modules.diffusionmodules.mmdit",
    "comfy.ldm.modules.diffusionmodules.openaimodel",
    "comfy.ldm.modules.diffusionmodules.util",
    "comfy.ldm.modules.sdpose",
    "comfy.ldm.modules.sub_quadratic_attention",
    "comfy.ldm.qwen_image.model",
    "comfy.ldm.rt_detr.rtdetr_v4",
    "comfy.ldm.seedvr.constants",
    "comfy.ldm.util",
}
"""What the boot needs although the table names it: base classes, constants and functions."""


@pytest.mark.parametrize("root", roots())
def test_the_table_names_what_is_there(root: str, plain: Server, comfyui_tree: Path) -> None:
    """An entry that has gone from ComfyUI, or its requirements, has to go from the table."""
    in_tree = comfyui_tree / root.replace(".", "/")
    if root in OPTIONAL:
        assert importlib.util.find_spec(root) is None
        assert root not in plain.at_ready["modules"]
        return
    assert in_tree.is_dir() or importlib.util.find_spec(root) is not None
    assert root in plain.at_ready["modules"]


@pytest.mark.parametrize("root", sorted(roots().keys() - OPTIONAL))
def test_what_the_table_names_is_put_off(root: str, lazy: Server) -> None:
    """An upgrade of ComfyUI, or a library, that uses it at the boot makes the entry idle."""
    modules = lazy.at_ready["modules"]
    below = {name: state for name, state in modules.items() if is_below(name, root)}
    if root in NEVER_ASKED:
        assert below == {}
    elif modules[root] == "folder":
        assert "put off" in below.values()
    else:
        assert set(below.values()) == {"put off"}


def test_what_is_run_at_the_boot_all_the_same_is_known(lazy: Server) -> None:
    """One more here is a boot that takes longer, and a table that says too much."""
    run = {
        name
        for name, state in lazy.at_ready["modules"].items()
        if state == "run" and any(is_below(name, root) for root in roots())
    }
    assert run == AT_ONCE


def test_a_plain_boot_puts_nothing_off(plain: Server) -> None:
    assert set(plain.at_ready["modules"].values()) == {"run", "folder"}
    assert plain.at_ready["names"] == []


def test_all_other_modules_are_the_same(plain: Server, lazy: Server) -> None:
    """Those of the table, and what only they import, are the difference."""
    assert lazy.at_ready["modules"].keys() - plain.at_ready["modules"].keys() == set()


def test_the_nodes_are_the_same(plain: Server, lazy: Server) -> None:
    mine, theirs = lazy.get("/object_info"), plain.get("/object_info")
    assert mine.keys() == theirs.keys()
    differing = {
        f"{class_type}.{key}": (mine[class_type].get(key), value)
        for class_type, declared in theirs.items()
        for key, value in declared.items()
        if mine[class_type].get(key) != value
    }
    assert differing == {}
    assert len(mine) > 500


def test_the_catalog_is_the_same(plain: Server, lazy: Server) -> None:
    both = []
    for started in (plain, lazy):
        process = started.runner.process
        with ComfyClient(process.base_url, process.token) as client:
            both.append(client.catalog())
    mine, theirs = both[1], both[0]
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key] != theirs[key]] == []


def sampled(**changes: Any) -> dict[str, Any]:
    """The bundled picture, small and with few steps."""
    graph = bundled("text_to_picture")
    graph["6"]["inputs"] |= {"width": 64, "height": 64}
    graph["7"]["inputs"] |= {"steps": 3, **changes}
    return graph


def after(picture: Mapping[str, Any], *saved: dict[str, Any]) -> dict[str, Any]:
    """The same, with nodes that take the decoded picture, and each give one that is saved."""
    graph = dict(picture)
    for number, each in enumerate(saved):
        graph[f"{100 + number}"] = each
        images = [f"{100 + number}", 0]
        graph[f"{200 + number}"] = node("SaveImage", images=images, filename_prefix="after")
    return graph


PICTURE = ["8", 0]


def again() -> dict[str, Any]:
    """A picture made from a picture."""
    graph = sampled()
    return graph | {
        "20": node("VAEEncode", pixels=PICTURE, vae=["3", 0]),
        "21": node(
            "KSampler", **graph["7"]["inputs"] | {"latent_image": ["20", 0], "denoise": 0.6}
        ),
        "22": node("VAEDecode", samples=["21", 0], vae=["3", 0]),
        "23": node("SaveImage", images=["22", 0], filename_prefix="again"),
    }


def with_lora() -> dict[str, Any]:
    graph = sampled(model=["20", 0])
    loaded = node("LoraLoaderModelOnly", model=["1", 0], lora_name="one.safetensors")
    loaded["inputs"]["strength_model"] = 1.0
    return graph | {"20": loaded}


def compiled() -> dict[str, Any]:
    """On a CPU cudagraphs traces and computes as is; inductor would need a C++ compiler."""
    graph = sampled(model=["20", 0], steps=1)
    return graph | {"20": node("TorchCompileModel", model=["1", 0], backend="cudagraphs")}


def upscaled() -> dict[str, Any]:
    loader = node("UpscaleModelLoader", model_name="realesr-animevideov3.safetensors")
    upscale = node("ImageUpscaleWithModel", upscale_model=["20", 0], image=PICTURE)
    return after(sampled(), upscale) | {"20": loader}


def sound(**gains: float) -> dict[str, Any]:
    """A chirp that is resampled, joined and filtered."""
    equaliser = {
        "low_gain_dB": 6.0,
        "low_freq": 100,
        "mid_gain_dB": -3.0,
        "mid_freq": 1000,
        "mid_q": 0.7,
        "high_gain_dB": 4.0,
        "high_freq": 5000,
        **gains,
    }
    return {
        "1": node("TestChirp", rate=8000),
        "2": node("TestChirp", rate=16000),
        "3": node("AudioConcat", audio1=["1", 0], audio2=["2", 0], direction="after"),
        "4": node("AudioEqualizer3Band", audio=["3", 0], **equaliser),
        "5": node("SaveAudio", audio=["4", 0], filename_prefix="sound"),
    }


def film() -> dict[str, Any]:
    graph = sampled()
    del graph["9"]
    return graph | {
        "20": node("RepeatImageBatch", image=PICTURE, amount=5),
        "21": node("TestChirp", rate=16000),
        "22": node("CreateVideo", images=["20", 0], fps=5.0, audio=["21", 0]),
        "23": node(
            "SaveVideo", video=["22", 0], filename_prefix="film", format="mp4", codec="h264"
        ),
    }


MORPHOLOGY = ("erode", "dilate", "open", "close", "gradient", "bottom_hat", "top_hat")

GRAPHS = {
    "a usual sampler": sampled(),
    "the beta scheduler (scipy)": sampled(scheduler="beta"),
    "dpmpp_sde (torchsde)": sampled(sampler_name="dpmpp_sde", scheduler="karras"),
    "dpmpp_2m_sde (torchsde)": sampled(sampler_name="dpmpp_2m_sde", scheduler="exponential"),
    "lms (scipy.integrate)": sampled(sampler_name="lms", scheduler="normal"),
    "uni_pc": sampled(sampler_name="uni_pc", scheduler="sgm_uniform"),
    "ddim": sampled(sampler_name="ddim", scheduler="ddim_uniform"),
    "a picture from a picture": again(),
    "a LoRA": with_lora(),
    "an upscaling model (spandrel)": upscaled(),
    "edges (kornia)": after(
        sampled(), node("Canny", image=PICTURE, low_threshold=0.1, high_threshold=0.3)
    ),
    "morphology (kornia)": after(
        sampled(),
        *(
            node("Morphology", image=PICTURE, operation=operation, kernel_size=3)
            for operation in MORPHOLOGY
        ),
    ),
    "blur and sharpening": after(
        sampled(),
        node("ImageBlur", image=PICTURE, blur_radius=2, sigma=1.0),
        node("ImageSharpen", image=PICTURE, sharpen_radius=1, sigma=1.0, alpha=1.0),
    ),
    "sound (torchaudio)": sound(),
    "a film": film(),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_workflow_makes_the_same(plain: Server, lazy: Server, graph: dict[str, Any]) -> None:
    assert lazy.results(graph) == plain.results(graph)


COMPILED = """
from torch._dynamo.utils import counters
answer = dict(counters["stats"])
"""


def test_a_compiled_model_makes_the_same(plain: Server, lazy: Server) -> None:
    mine, theirs = lazy.results(compiled()), plain.results(compiled())
    assert mine == theirs
    assert lazy.answer(COMPILED) == plain.answer(COMPILED)
    assert lazy.answer(COMPILED)["calls_captured"] > 0


CODE = {
    "torch._dynamo": """
        import torch
        def double(x):
            return torch.sin(x) * 2
        x = torch.arange(4.0)
        answer = torch.compile(double, backend="eager", fullgraph=True)(x).tolist()
    """,
    "torch.export": """
        import torch
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        answer = [str(node) for node in program.graph.nodes]
    """,
    "torchvision": """
        import torch, torchvision
        from torchvision.transforms.functional import resize
        ramp = torch.arange(64.0).reshape(1, 8, 8)
        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
        answer = [resize(ramp, [3, 3]).tolist(), kept.tolist()]
    """,
    "torchaudio": """
        import torch, torchaudio
        sound = torch.sin(torch.arange(400.0))
        mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=64, n_mels=4)
        answer = [mel(sound).tolist(), torchaudio.functional.resample(sound, 4, 3).tolist()]
    """,
    "transformers": """
        import comfy.sd1_clip
        tokens = comfy.sd1_clip.SDTokenizer()
        text = tokens.tokenize_with_weights("a (red:1.2) house")
        answer = [text, type(tokens.tokenizer).__name__]
    """,
    "tokenizers": """
        from tokenizers import Tokenizer, models
        made = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        answer = made.encode("b").ids
    """,
    "scipy": """
        import scipy.ndimage
        from scipy import integrate, stats
        answer = [
            float(stats.beta.ppf(0.3, 0.6, 0.6)),
            integrate.quad(lambda x: x * x, 0, 1)[0],
            scipy.ndimage.gaussian_filter([[0.0, 1, 0]], 1).tolist(),
        ]
    """,
    "torchsde": """
        import torch, torchsde
        tree = torchsde.BrownianTree(0.0, torch.zeros(2), 1.0, entropy=3)
        answer = tree(0.1, 0.7).tolist()
    """,
    "kornia": """
        import torch, kornia
        ramp = torch.arange(64.0).reshape(1, 1, 8, 8) / 64
        grey = kornia.color.rgb_to_grayscale(ramp.repeat(1, 3, 1, 1))
        answer = [kornia.filters.canny(ramp)[0].tolist(), grey.tolist()]
    """,
    "spandrel": """
        import spandrel
        answer = sorted(each.architecture.id for each in spandrel.MAIN_REGISTRY.architectures())
    """,
    "requests": """
        import requests
        try:
            requests.get("http://127.0.0.1:1/", timeout=5)
        except requests.ConnectionError as err:
            answer = type(err).__name__
    """,
    "comfy.ldm": """
        import torch, comfy.ops
        import comfy.ldm.wan.model
        torch.manual_seed(0)
        made = comfy.ldm.wan.model.WanModel(
            dim=24, ffn_dim=24, num_heads=2, num_layers=1, text_dim=8, in_dim=4, out_dim=4,
            operations=comfy.ops.disable_weight_init,
        )
        answer = [list(each.shape) for each in made.state_dict().values()]
    """,
    "comfy.text_encoders": """
        import comfy.text_encoders.flux as flux, comfy.text_encoders.sd3_clip
        made = flux.FluxTokenizer()
        answer = made.t5xxl.tokenize_with_weights("a house")[0][:3]
    """,
    "comfy.audio_encoders": """
        import torch, comfy.audio_encoders.whisper as whisper
        made = whisper.WhisperFeatureExtractor(n_mels=8)
        answer = list(made(torch.sin(torch.arange(1600.0)).reshape(1, 1, -1)).shape)
    """,
    "app.assets": """
        import app.assets.seeder
        answer = [app.assets.seeder.asset_seeder.is_disabled(), app.assets.seeder.__name__]
    """,
    "app.database": """
        import app.database.db as db
        with db.create_session() as session:
            answer = [type(session).__name__, db.can_create_session(), db.dependencies_available()]
    """,
}


@pytest.mark.parametrize("root", sorted({*roots(), *CODE} - OPTIONAL))
def test_each_can_be_used_while_it_runs(plain: Server, lazy: Server, root: str) -> None:
    assert lazy.answer(CODE[root]) == plain.answer(CODE[root])


RUN_ALL = """
import sys
failed = []
for name, module in list(sys.modules.items()):
    if type(module) is LAZY.Unrun:
        try:
            dir(module)
        except Exception as err:
            failed.append(f"{name}: {err!r}")
for module, key, value in list(names()):
    try:
        repr(value)
    except Exception as err:
        failed.append(f"{module.__name__}:{key}: {err!r}")
answer = {
    "failed": failed,
    "left": [f"{module.__name__}:{key}" for module, key, _ in names()],
    "put off": [name for name, module in sys.modules.items() if state(module) == "put off"],
}
"""


def test_all_of_it_can_be_run_and_nothing_is_missing_then(plain: Server, lazy: Server) -> None:
    """Also: every name that ComfyUI imports from what is put off is there."""
    assert lazy.answer(RUN_ALL) == {"failed": [], "left": [], "put off": []}
    loaded = lazy.get("/tests/modules")["modules"].keys()
    assert plain.at_ready["modules"].keys() - loaded == set()


def test_a_pack_that_imports_all_of_it_at_the_boot_gets_the_real_things(
    config: Config, tmp_path: Path
) -> None:
    """In a forked ComfyUI, where libraries have been put off before the fork."""
    ours = replace(settings(config, tmp_path, "importers", lazy=True), fork_server=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with Runner(ours) as runner:
            graph = {"1": node("TestImporters")}
            (made,) = [
                each.path
                for each in runner.run(Request(document=graph))
                if isinstance(each, Output)
            ]
            told = json.loads(made.read_text())
    assert told == {
        "bases": ["CLIPTokenizer", "FluxTokenizer"],
        "the same": True,
        "tokenizer": True,
        "embedder": [1, 4],
        "both": True,
        "patched": [True, "in model_base", True],
        "attention": [True, True],  # as in a plain boot, where they are there before any pack
        "canny": [1, 1, 8, 8],
        "compiled": True,
        "exported": "Tensor",
        "resized": [1, 3, 4, 4],
        "resampled": [1, 50],
        "scipy": [0.3857, 0.5],
        "integral": 0.5,
        "brownian": [2, 2],
        "refused": "ConnectionError",
        "whisper": "comfy.audio_encoders.whisper",
        "spandrel": "ModelLoader",
        "extra": True,
        "tokenizers": "Tokenizer",
        "version": True,
        "assets": [True, True],
    }


@pytest.fixture
def refused(config: Config, tmp_path: Path) -> Iterator[ComfyProcess]:
    """A ComfyUI with a pack that ends it where anything is put off; not started."""
    process = ComfyProcess(settings(config, tmp_path, "refuser", lazy=True), tmp_path / "run")
    yield process
    process.stop()


def test_a_boot_that_fails_is_followed_by_a_plain_one(
    refused: ComfyProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with caplog.at_level(logging.WARNING, "comfy_runner.comfyui.process"):
        refused.start()
        assert refused.wait_ready(BOOT_TIMEOUT)
        refused.restart()  # which does not try it again
        assert refused.wait_ready(BOOT_TIMEOUT)
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    told = [each for each in warnings if "shortened" in each]
    assert told == [
        "ComfyUI ended while it booted in a shortened way (exit code 3); it boots as usual from"
        " now on. Its last line was: scipy is not what it was"
    ]
