"""Settings from the environment."""

from dataclasses import fields
from pathlib import Path

import pytest

from comfy_runner.config import Config
from comfy_runner.errors import InvalidInput

PREFIX = "COMFY_RUNNER_"


def test_without_variables_every_setting_has_its_default() -> None:
    assert Config.from_environment({"PATH": "/bin", "HOME": "/root"}) == Config()


def test_empty_variables_count_as_unset() -> None:
    empty = {f"{PREFIX}{field.name.upper()}": "" for field in fields(Config)}
    assert Config.from_environment(empty) == Config()


def test_every_setting_is_read() -> None:
    given = {
        "HOME": "/a/home",
        "COMFYUI": "/a/comfyui",
        "MODELS": "/a/models",
        "MANIFEST": "/a/manifest.json",
        "CUSTOM_NODES": "/a/nodes",
        "DEVICE": "cpu",
        "COMFYUI_ARGS": "--lowvram  --preview-size 256",
        "TORCH": "tf32, matmul=medium,cudnn_benchmark",
        "WARM_UP": "/a/workflow.json",
        "PRELOAD": "flux, vae/a.pt,/a/workflow.json",
        "BOOT_TIMEOUT": "1.5",
        "RUN_TIMEOUT": "2",
        "STALL_TIMEOUT": "3e1",
        "MAX_INPUT_BYTES": "1000",
        "MAX_WEIGHTS_BYTES": "2000",
        "DISK_RESERVE": "3000",
        "FETCH_TIMEOUT": "4",
        "RECHECK_AFTER": "0.5",
        "PGET": "off",
        "ALLOW_PICKLES": "true",
        "HUB_AT_RUN_TIME": "1",
        "PRIVATE_ADDRESSES": "yes",
        "ALLOWED_HOSTS": "Huggingface.co, *.hf.co",
        "MAX_CHILD_MEMORY": "4000",
        "MAX_RESTARTS": "2",
        "OOM_RETRY": "off",
        "ALLOW_NODES": "StringFormat, Node with spaces",
        "DENY_NODES": "SaveGLB",
        "ONLY_NODES": "A,B,",
        "MAX_URLS": "5",
        "HF_ENDPOINT": "https://mirror.example/hf/",
        "CIVITAI_ENDPOINT": "http://127.0.0.1:81",
        "REPLICATE_ENDPOINT": "http://127.0.0.1:82",
    }
    config = Config.from_environment({PREFIX + name: value for name, value in given.items()})
    assert config == Config(
        home=Path("/a/home"),
        comfyui=Path("/a/comfyui"),
        models=Path("/a/models"),
        manifest=Path("/a/manifest.json"),
        custom_nodes=Path("/a/nodes"),
        device="cpu",
        comfyui_args=("--lowvram", "--preview-size", "256"),
        torch=("tf32", "matmul=medium", "cudnn_benchmark"),
        warm_up=Path("/a/workflow.json"),
        preload=("flux", "vae/a.pt", "/a/workflow.json"),
        boot_timeout=1.5,
        run_timeout=2.0,
        stall_timeout=30.0,
        max_input_bytes=1000,
        max_weights_bytes=2000,
        disk_reserve=3000,
        fetch_timeout=4.0,
        recheck_after=0.5,
        pget="off",
        allow_pickles=True,
        hub_at_run_time=True,
        private_addresses=True,
        allowed_hosts=("huggingface.co", "*.hf.co"),
        max_child_memory=4000,
        max_restarts=2,
        oom_retry=False,
        allow_nodes=("StringFormat", "Node with spaces"),
        deny_nodes=("SaveGLB",),
        only_nodes=("A", "B"),
        max_urls=5,
        hf_endpoint="https://mirror.example/hf",
        civitai_endpoint="http://127.0.0.1:81",
        replicate_endpoint="http://127.0.0.1:82",
    )


def test_what_stands_below_home_follows_it() -> None:
    config = Config.from_environment({f"{PREFIX}HOME": "/a/home"})
    assert config.comfyui == Path("/a/home/ComfyUI")
    assert config.models == Path("/a/home/models")
    assert config.cache == Path("/a/home/cache")
    assert config.runs == Path("/a/home/runs")
    assert config.manifest == Config().manifest


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/fox")
    config = Config.from_environment({f"{PREFIX}HOME": "here", f"{PREFIX}MODELS": "~/models"})
    assert config.home == tmp_path / "here"
    assert config.models == Path("/home/fox/models")


def test_the_process_s_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}DEVICE", "cuda")
    assert Config.from_environment().device == "cuda"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1,5", "1e999"])
@pytest.mark.parametrize(
    "name", ["BOOT_TIMEOUT", "RUN_TIMEOUT", "STALL_TIMEOUT", "MAX_INPUT_BYTES"]
)
def test_a_number_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Config.from_environment({PREFIX + name: value})
    (problem,) = caught.value.problems
    assert (problem.code, problem.input) == ("bad_setting", PREFIX + name)
    assert repr(value) in problem.what


def test_no_url_at_all_can_be_wanted() -> None:
    assert Config.from_environment({f"{PREFIX}MAX_URLS": "0"}).max_urls == 0
    with pytest.raises(InvalidInput, match="'-1' is neither 0 nor a number above 0"):
        Config.from_environment({f"{PREFIX}MAX_URLS": "-1"})


def test_no_warm_up_can_be_wanted() -> None:
    assert Config.from_environment({f"{PREFIX}WARM_UP": "off"}).warm_up is None


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("tf32,fast", "fast is none of tf32, matmul=highest, "),
        ("matmul=low", "matmul=low is none of "),
        ("matmul=high,matmul=medium", "matmul=high and matmul=medium contradict each other."),
        ("matmul=highest,tf32", "tf32 and matmul=highest contradict each other."),
    ],
)
def test_what_torch_cannot_be_told_is_refused(value: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Config.from_environment({f"{PREFIX}TORCH": value})
    (problem,) = caught.value.problems
    assert (problem.code, problem.input) == ("bad_setting", f"{PREFIX}TORCH")
    assert problem.what.startswith(what)


def test_every_setting_that_does_not_fit_is_told() -> None:
    with pytest.raises(InvalidInput) as caught:
        Config.from_environment({f"{PREFIX}DEVICE": "tpu", f"{PREFIX}RUN_TIMEOUT": "x"})
    assert {problem.input for problem in caught.value.problems} == {
        f"{PREFIX}DEVICE",
        f"{PREFIX}RUN_TIMEOUT",
    }


def test_hugging_face_is_where_its_own_variable_says() -> None:
    given = {"HF_ENDPOINT": "https://mirror.example/"}
    assert Config.from_environment(given).hf_endpoint == "https://mirror.example"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALLOW_PICKLES", "maybe"),
        ("HUB_AT_RUN_TIME", "2"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", "https://user:pass@mirror.example"),
        ("CIVITAI_ENDPOINT", "ftp://civitai.com"),
    ],
)
def test_a_switch_or_address_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Config.from_environment({PREFIX + name: value})
    (problem,) = caught.value.problems
    assert (problem.code, problem.input) == ("bad_setting", PREFIX + name)


def test_nothing_is_done_ahead_of_a_single_run() -> None:
    assert Config(warm_up=Path("w.json"), preload=("all",)).for_one_run() == Config()
