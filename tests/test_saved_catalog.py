"""The node catalog on disk: found again, and only where it still holds."""

import gzip
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import catalog

from comfy_runner.comfyui import saved_catalog
from comfy_runner.config import Config

RAW: dict[str, Any] = {"object_info": {"Fox": {"output": ["IMAGE"], "output_node": True}}}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Settings with a small ComfyUI and one node pack."""
    for file in ("comfyui/main.py", "comfyui/comfy/model.py", "custom_nodes/pack/__init__.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x = 1\n")
    return Config(
        home=tmp_path / "home",
        comfyui=tmp_path / "comfyui",
        custom_nodes=tmp_path / "custom_nodes",
    )


def kept(config: Config) -> Path:
    """The one file of the cache."""
    (file,) = config.cache.iterdir()
    return file


def test_a_saved_catalog_is_found_again(config: Config) -> None:
    assert saved_catalog.load(config) is None
    saved = saved_catalog.save(config, catalog().raw)
    found = saved_catalog.load(config)
    assert found is not None
    assert found.raw == saved.raw == catalog().raw
    assert found.get("KSampler") == catalog().get("KSampler")


def test_comfyui_is_asked_once(config: Config) -> None:
    asked = []

    def ask() -> dict[str, Any]:
        asked.append(1)
        return RAW

    seen = saved_catalog.fingerprint(config)
    assert "Fox" in saved_catalog.of(config, ask, seen)
    assert "Fox" in saved_catalog.of(config, ask, seen)
    assert len(asked) == 1
    # Of one that runs other files, or nobody knows which, that does not hold.
    assert "Fox" in saved_catalog.of(config, ask, "other")
    assert "Fox" in saved_catalog.of(config, ask, "")
    assert len(asked) == 3
    assert len(list(config.cache.iterdir())) == 2


def test_what_was_told_before_a_pack_was_changed_does_not_hold_after_it(config: Config) -> None:
    seen = saved_catalog.fingerprint(config)
    changed = change("custom_nodes/pack/__init__.py")(config)
    saved_catalog.save(changed, RAW, seen)
    assert saved_catalog.load(changed) is None


def bare(config: Config) -> Config:
    """Without any pack."""
    return replace(config, custom_nodes=config.home / "nothing")


def test_without_a_saved_catalog_comfyui_s_own_nodes_are_known(config: Config) -> None:
    known = saved_catalog.known(bare(config))
    assert known.doubt == ""
    assert known.catalog.get("KSampler") == catalog().get("KSampler")
    assert "FluxProUltraImageNode" in catalog()
    assert "FluxProUltraImageNode" not in known.catalog, "the runner loads no API nodes"
    assert "FluxProUltraImageNode" in saved_catalog.offline(bare(config))


def test_a_saved_catalog_leaves_no_doubt(config: Config) -> None:
    assert saved_catalog.known(config).doubt
    saved_catalog.save(config, RAW)
    known = saved_catalog.known(config)
    assert (len(known.catalog), known.doubt) == (1, "")


def test_a_pack_that_tells_its_nodes_is_known_and_others_are_named(config: Config) -> None:
    (config.custom_nodes / "pack" / "object_info.json").write_text(
        json.dumps({"Fox": {"input": {"required": {}}, "output": ["IMAGE"]}})
    )
    known = saved_catalog.known(config)
    assert "Fox" in known.catalog
    assert known.doubt == ""
    for name in (*"abcdefg", "off.disabled"):
        change(f"custom_nodes/{name}/__init__.py")(config)
    change("custom_nodes/single.py")(config)
    change("custom_nodes/notes/notes.txt")(config)
    change("custom_nodes/notes.txt")(config)
    assert f"with a, b, c, d, e and 3 more in {config.custom_nodes} as it" in (
        saved_catalog.known(config).doubt
    )


def test_a_pack_that_tells_no_classes_is_one_that_tells_nothing(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    (config.custom_nodes / "pack" / "object_info.json").write_text("{")
    assert "with pack in" in saved_catalog.known(config).doubt
    assert "KSampler" in saved_catalog.offline(config)
    assert "object_info.json: It is neither JSON" in caplog.text


def test_packs_that_are_switched_off_are_not_known(config: Config) -> None:
    off = replace(config, comfyui_args=("--disable-all-custom-nodes",))
    assert saved_catalog.known(off).doubt == ""
    some = replace(off, comfyui_args=(*off.comfyui_args, "--whitelist-custom-nodes", "pack"))
    assert "with pack in" in saved_catalog.known(some).doubt


def test_another_comfyui_may_have_other_nodes(config: Config) -> None:
    (config.comfyui / "comfyui_version.py").write_text('__version__ = "0.99.0"\n')
    doubt = "This is ComfyUI 0.99.0, but the nodes known here are of 0.30.0."
    assert saved_catalog.known(bare(config)).doubt == doubt


def test_saving_leaves_one_file_that_everyone_may_read(config: Config) -> None:
    old = os.umask(0o022)
    try:
        saved_catalog.save(config, RAW)
        saved_catalog.save(config, RAW)
    finally:
        os.umask(old)
    assert kept(config).stat().st_mode & 0o777 == 0o644


def change(file: str) -> Callable[[Config], Config]:
    def call(config: Config) -> Config:
        path = config.home.parent / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 22\n")
        return config

    return call


def touch(config: Config) -> Config:
    """As an editor that saves the same text, or a checkout of another commit of the same size."""
    os.utime(config.comfyui / "main.py", (1, 1))
    return config


def remove(config: Config) -> Config:
    shutil.rmtree(config.custom_nodes / "pack")
    return config


@pytest.mark.parametrize(
    "changed",
    [
        change("comfyui/comfy/model.py"),
        change("comfyui/new.py"),
        change("custom_nodes/pack/__init__.py"),
        change("custom_nodes/pack/nodes.json"),
        change("custom_nodes/pack/pyproject.toml"),
        change("custom_nodes/pack/styles.csv"),
        change("custom_nodes/pack/fast.so"),
        change("custom_nodes/other.py"),
        touch,
        remove,
        lambda config: replace(config, comfyui_args=("--disable-all-custom-nodes",)),
        lambda config: replace(config, custom_nodes=config.home / "nothing"),
        lambda config: replace(config, device="cpu"),
        lambda config: replace(config, hub_at_run_time=True),
    ],
)
def test_another_source_or_setting_is_another_catalog(
    config: Config, changed: Callable[[Config], Config]
) -> None:
    saved_catalog.save(config, RAW)
    assert saved_catalog.load(changed(config)) is None


@pytest.mark.parametrize(
    "file",
    [
        "custom_nodes/pack/README.md",
        "custom_nodes/pack/__pycache__/x.py",
        "custom_nodes/pack/.git/x.py",
        "comfyui/output/fox.png",
        "models/loras/x.safetensors",
    ],
)
def test_other_files_change_nothing(config: Config, file: str) -> None:
    saved_catalog.save(config, RAW)
    assert saved_catalog.load(change(file)(config)) is not None


def test_a_linked_node_pack_counts(config: Config, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "pack"
    real.mkdir(parents=True)
    (real / "__init__.py").write_text("x = 1\n")
    (config.custom_nodes / "linked").symlink_to(real)
    for name in ("round", "and round"):
        (real / name).symlink_to(config.custom_nodes)
    saved_catalog.save(config, RAW)
    assert saved_catalog.load(config) is not None
    (real / "__init__.py").write_text("x = 22\n")
    assert saved_catalog.load(config) is None


def test_a_link_that_leads_nowhere_is_no_obstacle(config: Config) -> None:
    (config.custom_nodes / ".#lock.py").symlink_to("nobody@nowhere.1234")
    (config.custom_nodes / "itself.py").symlink_to("itself.py")
    saved_catalog.save(config, RAW)
    assert saved_catalog.load(config) is not None


def test_without_node_packs_there_is_a_catalog_too(config: Config) -> None:
    bare = replace(config, custom_nodes=config.home / "nothing")
    saved_catalog.save(bare, RAW)
    assert saved_catalog.load(bare) is not None


def damaged(content: bytes) -> list[bytes]:
    middle = len(content) // 2
    return [
        b"",
        b"no gzip",
        content[:middle],
        content[:middle] + b"\xff" * 40 + content[middle + 40 :],
        content[:-8] + bytes(8),
    ]


def test_a_broken_file_is_made_anew(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    saved_catalog.save(config, catalog().raw)
    path = kept(config)
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        caplog.clear()
        assert saved_catalog.load(config) is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "made anew" in caplog.text
    assert "Fox" in saved_catalog.of(config, lambda: RAW, saved_catalog.fingerprint(config))
    assert saved_catalog.load(config) is not None


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"text"', b"{}", b"{", b"\xff"])
def test_other_json_is_no_catalog(config: Config, content: bytes) -> None:
    saved_catalog.save(config, RAW)
    kept(config).write_bytes(gzip.compress(content))
    assert saved_catalog.load(config) is None


def test_a_cache_that_takes_no_file_costs_only_the_saving(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config.home.mkdir()
    config.cache.write_text("a file where the folder should be")
    assert "Fox" in saved_catalog.of(config, lambda: RAW, saved_catalog.fingerprint(config))
    assert "cannot be saved" in caplog.text
    assert saved_catalog.load(config) is None
    assert config.cache.read_text() == "a file where the folder should be"


def test_what_cannot_be_put_in_place_is_not_left_behind(config: Config) -> None:
    saved_catalog.save(config, RAW)
    path = kept(config)
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()
    assert "Fox" in saved_catalog.save(config, RAW)
    assert kept(config) == path


def test_an_answer_that_is_no_catalog_is_not_saved(config: Config) -> None:
    with pytest.raises(KeyError):
        saved_catalog.save(config, {})
    assert not config.cache.exists()
