"""Where an address leads: what hosts are asked, what is made of their answers, who gets a token."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.weight_hosts import Told, WeightHosts, civitai_file, commit, digest, running

from comfy_runner.errors import Cancelled, DownloadFailed, InvalidInput
from comfy_runner.fetch.download import Patience
from comfy_runner.weights.hosts.addresses import HuggingFace, canonical, parse
from comfy_runner.weights.hosts.locate import Place, locate, locate_source, wrong_folder
from comfy_runner.weights.weight import Source

QUICK = Patience(connect=5, stall=5, retries=2, backoff=0.01)
REPOSITORY = "/hub/api/models/o/r/revision/main"


@pytest.fixture
def hosts() -> Iterator[WeightHosts]:
    with running() as served:
        yield served


def find(hosts: WeightHosts, text: str, **options: Any) -> Place:
    credentials = options.pop("credentials", {})
    address = parse(text)
    assert address is not None
    return locate(
        address,
        hosts=hosts.hosts,
        credentials=credentials,
        cancelled=options.pop("cancelled", threading.Event()),
        patience=QUICK,
        **options,
    )


def source(hosts: WeightHosts, source: Source, **options: Any) -> Place:
    return locate_source(
        source,
        hosts=hosts.hosts,
        credentials=options.pop("credentials", {}),
        cancelled=threading.Event(),
        patience=QUICK,
        **options,
    )


# Hugging Face


def test_a_file_on_hugging_face_is_located_without_a_question(hosts: WeightHosts) -> None:
    place = find(hosts, "https://huggingface.co/o/r/blob/refs%2Fpr%2F1/a/my%20x.safetensors")

    assert place.url == f"{hosts.hub_url}/o/r/resolve/refs%2Fpr%2F1/a/my%20x.safetensors"
    assert place.name == "my x.safetensors"
    assert place.identity == "https://huggingface.co/o/r/resolve/refs%2Fpr%2F1/a/my%20x.safetensors"
    assert (place.size, place.sha256, place.immutable) == (None, None, False)
    assert hosts.asked == []


def test_a_file_at_a_commit_is_immutable(hosts: WeightHosts) -> None:
    assert find(hosts, f"hf://datasets/o/r@{'a' * 40}/x.sft").immutable
    place = find(hosts, "hf://datasets/o/r/x.sft")
    assert place.url == f"{hosts.hub_url}/datasets/o/r/resolve/main/x.sft"


def test_the_only_weight_of_a_repository_is_pinned_to_its_commit(hosts: WeightHosts) -> None:
    hosts.add_repository(
        "o/r", {".gitattributes": 20, "README.md": 900, "x.safetensors": 5000}, gated="auto"
    )

    place = find(hosts, "o/r")

    pinned = f"/o/r/resolve/{commit('o/r')}/x.safetensors"
    assert place.url == hosts.hub_url + pinned
    assert place.identity == f"https://huggingface.co{pinned}"
    assert place.immutable
    assert (place.size, place.sha256) == (5000, digest("x.safetensors"))
    assert (place.license, place.gated) == ("apache-2.0", True)
    assert [(q.path, q.query) for q in hosts.asked] == [(REPOSITORY, "blobs=true")]


@pytest.mark.parametrize(
    ("files", "options", "chosen"),
    [
        (["x.safetensors", "x.ckpt", "unet/y.safetensors"], {}, "x.safetensors"),
        (["model_index.json", "sub/x.safetensors"], {}, "sub/x.safetensors"),
        (["x.ckpt", "optimizer.bin", "training_args.bin"], {}, "x.ckpt"),
        (["x-Q4_K.gguf", "imatrix.dat", "x.bin"], {}, "x-Q4_K.gguf"),
        (
            ["pytorch_lora_weights.safetensors", "step_100.safetensors"],
            {"folder": "loras"},
            "pytorch_lora_weights.safetensors",
        ),
        (
            ["lora.safetensors", "lora_emb.safetensors"],
            {"tags": ["lora"]},
            "lora.safetensors",
        ),
        (
            ["x.safetensors", "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"],
            {},
            "x.safetensors",
        ),
    ],
)
def test_chooses_the_one_sensible_weight(
    hosts: WeightHosts, files: list[str], options: dict[str, Any], chosen: str
) -> None:
    hosts.add_repository("o/r", dict.fromkeys(files, 5000), tags=options.pop("tags", ()))
    assert find(hosts, "o/r", **options).sha256 == digest(chosen)


def test_chooses_within_a_folder_and_a_format(hosts: WeightHosts) -> None:
    files = ["x.safetensors", "vae/a.safetensors", "vae/deep/b.safetensors", "vae/a.ckpt"]
    hosts.add_repository("o/r", dict.fromkeys(files, 5000))
    assert find(hosts, "https://huggingface.co/o/r/tree/main/vae").name == "a.safetensors"
    assert find(hosts, "urn:air:sdxl:vae:huggingface:o/r@main.ckpt").name == "a.ckpt"
    assert find(hosts, "urn:air:sdxl:vae:huggingface:o/r@main.ckpt").folder == "vae"


def test_several_weights_are_listed_with_the_addresses_to_write(hosts: WeightHosts) -> None:
    hosts.add_repository(
        "o/r", {"a.safetensors": 1_300_000, "b.safetensors": 24_000_000_000, "c.txt": 5000}
    )

    with pytest.raises(InvalidInput) as caught:
        find(hosts, "hf://o/r")

    problem = caught.value.problems[0]
    assert problem.code == "ambiguous_weight"
    assert "o/r on Hugging Face holds 2 weights" in problem.what
    assert "hf://o/r/a.safetensors (1.3 MB), hf://o/r/b.safetensors (24.0 GB)" in problem.hint


@pytest.mark.parametrize(("kind", "revision"), [("models", "v1"), ("datasets", "refs/pr/1")])
def test_each_listed_address_means_that_file(hosts: WeightHosts, kind: str, revision: str) -> None:
    files = {f"{n}.safetensors": 5000 for n in range(30)}
    quoted = revision.replace("/", "%2F")
    hosts.add_repository("o/r", files, revision=quoted, kind=kind)
    prefix = "" if kind == "models" else f"{kind}/"

    with pytest.raises(InvalidInput) as caught:
        find(hosts, f"hf://{prefix}o/r@{revision}")

    hint = caught.value.problems[0].hint
    assert "and 10 more" in hint
    listed = [word for word in hint.split() if word.startswith("hf://")]
    assert (
        [parse(text) for text in listed]
        == [
            HuggingFace(repo_id="o/r", revision=revision, path=path, kind=kind)  # type: ignore[arg-type]
            for path in list(files)[:20]
        ]
    )


@pytest.mark.parametrize(
    "files",
    [["README.md"], ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]],
)
def test_a_repository_without_a_weight_that_comfyui_loads(
    hosts: WeightHosts, files: list[str]
) -> None:
    hosts.add_repository("o/r", dict.fromkeys(files, 5000))
    with pytest.raises(InvalidInput, match="o/r on Hugging Face holds") as caught:
        find(hosts, "o/r")
    assert caught.value.problems[0].code == "no_weight"


def test_a_moved_repository_is_followed(hosts: WeightHosts) -> None:
    hosts.add_repository("new/r", {"x.safetensors": 5000})
    location = {"Location": "/hub/api/models/new/r/revision/main?blobs=true"}
    hosts.tell(REPOSITORY, status=307, headers=location)
    assert find(hosts, "o/r").sha256 == digest("x.safetensors")


@pytest.mark.parametrize(
    ("told", "credentials", "why"),
    [
        (None, {}, r"private, gated or not there \(HTTP 401\)\. .* set HF_TOKEN"),
        (None, {"127.0.0.1": "t"}, "the token in HF_TOKEN may not read it"),
        (Told({"error": "gated"}, 403), {}, r"licence on https://huggingface\.co/o/r"),
        (Told({}, 400), {}, "the host answered HTTP 400"),
        (Told({"error": "busy"}, 503), {}, r"\(HTTP 503\)\. Gave up after 3 attempts"),
        (Told(b"<!doctype html>"), {}, "not understood"),
        (Told([]), {}, "not understood"),
        (Told({"sha": "main", "siblings": []}), {}, "not understood"),
        (Told({"sha": "a" * 40}), {}, "not understood"),
        (Told({"sha": "a" * 40, "siblings": [{"name": "x"}]}), {}, "not understood"),
        (Told({"sha": "a" * 40, "siblings": [None]}), {}, "not understood"),
        (Told(b"[" * 100_000), {}, "not understood"),
        (Told(b" " * 10_000_001), {}, "more than 10000000 bytes"),
        (Told({}, 302, {"Location": "ftp://x/"}), {}, "no web address"),
        (Told({}, 302, {"Location": REPOSITORY}), {}, "redirected more than"),
    ],
)
def test_says_what_to_do_when_a_repository_cannot_be_read(
    hosts: WeightHosts, told: Told | None, credentials: dict[str, str], why: str
) -> None:
    if told is not None:
        hosts.told[REPOSITORY] = told
    with pytest.raises(DownloadFailed, match=why):
        find(hosts, "o/r", credentials=credentials)


def test_the_licence_of_a_dataset_stands_on_its_own_page(hosts: WeightHosts) -> None:
    hosts.told["/hub/api/datasets/o/r/revision/main"] = Told({"error": "gated"}, 403)
    with pytest.raises(DownloadFailed, match=r"licence on https://huggingface\.co/datasets/o/r"):
        find(hosts, "hf://datasets/o/r")


def test_a_busy_host_is_asked_again(hosts: WeightHosts) -> None:
    busy = [Told({}, 429, {"Retry-After": "0"}), Told({}, 500)]
    hosts.add_repository("o/r", {"x.safetensors": 5000}, failures=busy)
    assert find(hosts, "o/r").name == "x.safetensors"
    assert len(hosts.asked) == 3


def test_a_set_flag_ends_the_search(hosts: WeightHosts) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        find(hosts, "o/r", cancelled=cancelled)


# CivitAI


def test_a_model_on_civitai_means_its_newest_version(hosts: WeightHosts) -> None:
    def version(number: int, published: str, **more: str) -> dict[str, Any]:
        files = [civitai_file(number * 10, number, f"v{number}.safetensors", primary=True)]
        return hosts.add_version(12, number, files, publishedAt=published, **more)

    hosts.add_model(
        12,
        [
            version(1, "2024-03-01T00:00:00.000Z"),
            version(2, "2025-03-01T00:00:00.000Z"),
            version(3, "2025-06-01T00:00:00.000Z", status="Draft"),
            version(4, "2025-05-01T00:00:00.000Z", availability="EarlyAccess"),
        ],
    )

    place = find(hosts, "https://civitai.com/models/12/a-style")

    assert place.name == "v2.safetensors"
    base = f"{hosts.hosts.civitai}/api/download/models/2"
    assert place.url == f"{base}?type=Model&format=SafeTensor"
    assert place.identity == "https://civitai.com/api/download/models/2?fileId=20"
    assert place.sha256 == digest("v2.safetensors")
    assert place.size is None
    assert (place.folder, place.immutable, place.gated) == ("loras", True, False)
    assert find(hosts, "civitai:12@4").gated


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("Checkpoint", "checkpoints"),
        ("LORA", "loras"),
        ("LoCon", "loras"),
        ("DoRA", "loras"),
        ("TextualInversion", "embeddings"),
        ("VAE", "vae"),
        ("Controlnet", "controlnet"),
        ("Upscaler", "upscale_models"),
        ("Hypernetwork", "hypernetworks"),
        ("Wildcards", ""),
    ],
)
def test_the_type_on_civitai_names_the_folder(hosts: WeightHosts, kind: str, folder: str) -> None:
    hosts.add_version(12, 34, [civitai_file(1, 34)], kind=kind)
    assert find(hosts, "https://civitai.com/model-versions/34").folder == folder


MANY = [
    civitai_file(1, 34, "full.safetensors", size="full", fp="fp32", primary=True),
    civitai_file(2, 34, "pruned.safetensors", size="pruned", fp="fp16"),
    civitai_file(3, 34, "pruned.ckpt", size="pruned", fp="fp16", format="PickleTensor"),
    civitai_file(4, 34, "vae.safetensors", type="VAE"),
    civitai_file(5, 34, "data.zip", type="Training Data", format="Other"),
]


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("civitai:12@34", "full.safetensors", "checkpoints"),
        ("https://civitai.com/models/12?modelVersionId=34", "full.safetensors", "checkpoints"),
        ("https://civitai.com/api/download/models/34", "full.safetensors", "checkpoints"),
        (
            "https://civitai.com/api/download/models/34?size=pruned&format=safetensor",
            "pruned.safetensors",
            "checkpoints",
        ),
        ("https://civitai.com/api/download/models/34?type=VAE", "vae.safetensors", "vae"),
        ("https://civitai.com/api/download/models/34?fileId=3", "pruned.ckpt", "checkpoints"),
        ("urn:air:sdxl:checkpoint:civitai:12@34+2", "pruned.safetensors", "checkpoints"),
        ("urn:air:sdxl:checkpoint:civitai:12@34.ckpt", "pruned.ckpt", "checkpoints"),
    ],
)
def test_chooses_the_file_of_a_version(
    hosts: WeightHosts, text: str, name: str, folder: str
) -> None:
    hosts.add_version(12, 34, MANY, kind="Checkpoint")
    place = find(hosts, text)
    assert (place.name, place.folder, place.sha256) == (name, folder, digest(name))


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_of_many_is_asked_for_by_what_its_download_says(
    hosts: WeightHosts, pinned: bool
) -> None:
    # Newer answers name the file by its number; else what differs may be its quantization alone.
    files = []
    for number, quant in ((1, "Q8_0"), (2, "Q4_K_M")):
        file = civitai_file(number, 34, f"{quant}.gguf", format="GGUF", primary=number == 1)
        file["metadata"]["quantType"] = quant
        base, _, query = file["downloadUrl"].partition("?")
        own = f"fileId={number}" if pinned else f"{query}&quantType={quant}"
        files.append({**file, "downloadUrl": f"{base}?{own}"})
    hosts.add_version(12, 34, files)

    place = find(hosts, "https://civitai.com/api/download/models/34?quantType=q4_k_m")

    assert place.name == "Q4_K_M.gguf"
    assert place.url.endswith("?fileId=2" if pinned else "&quantType=Q4_K_M")
    with pytest.raises(InvalidInput, match=r"Q8_0\.gguf \(Model, GGUF, Q8_0\)"):
        find(hosts, "https://civitai.com/api/download/models/34?quantType=Q2_K")


def test_a_zip_on_civitai_is_unpacked(hosts: WeightHosts) -> None:
    hosts.add_version(12, 34, MANY)
    place = find(hosts, "https://civitai.com/api/download/models/34?type=Training%20Data")
    assert place.extract == "zip"


def test_files_that_could_all_be_meant_are_listed(hosts: WeightHosts) -> None:
    twins = [civitai_file(1, 34, "a.safetensors"), civitai_file(2, 34, "b.safetensors")]
    hosts.add_version(12, 34, twins)

    with pytest.raises(InvalidInput) as caught:
        find(hosts, "civitai:12@34")

    problem = caught.value.problems[0]
    assert problem.code == "ambiguous_weight"
    listed = [word for word in problem.hint.split() if word.startswith("https://")]
    assert [find(hosts, text).name for text in listed] == ["a.safetensors", "b.safetensors"]
    assert "(228.5 MB)" in problem.hint


def test_a_file_that_a_version_lacks_is_refused_with_what_is_there(hosts: WeightHosts) -> None:
    hosts.add_version(12, 34, MANY)
    with pytest.raises(InvalidInput, match=r"pruned\.ckpt \(Model, PickleTensor, pruned, fp16\)"):
        find(hosts, "https://civitai.com/api/download/models/34?fp=bf16")


def test_a_version_of_another_model_is_refused(hosts: WeightHosts) -> None:
    hosts.add_version(12, 34, MANY)
    with pytest.raises(InvalidInput, match="belongs to model 12, not 13"):
        find(hosts, "civitai:13@34")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, "not understood"),
        ({"type": "LORA", "modelVersions": []}, "has no published version"),
        ({"type": "LORA", "modelVersions": [{"id": 1, "files": []}]}, "has no files"),
        ({"type": "LORA", "modelVersions": [{"id": 1}]}, "not understood"),
        ({"type": "LORA", "modelVersions": [{"id": 1, "files": [3]}]}, "not understood"),
        ({"modelVersions": [{"id": 1, "files": []}]}, "not understood"),
        ({"type": "LORA", "modelVersions": 5}, "not understood"),
    ],
)
def test_a_strange_answer_of_civitai_is_one_clear_error(
    hosts: WeightHosts, answer: Any, why: str
) -> None:
    hosts.tell("/civitai/api/v1/models/12", answer)
    with pytest.raises(DownloadFailed, match=why):
        find(hosts, "civitai:12")


def test_a_file_that_says_little_is_still_located(hosts: WeightHosts) -> None:
    bare = {"id": 7, "name": "x.safetensors", "metadata": None, "downloadUrl": "https://[evil"}
    hosts.add_version(12, 34, [bare])
    place = find(hosts, "civitai:12@34")
    assert place.url == f"{hosts.hosts.civitai}/api/download/models/34"
    assert (place.sha256, place.immutable) == (None, False)


def test_a_download_url_of_another_host_is_not_followed(hosts: WeightHosts) -> None:
    odd = civitai_file(1, 34, downloadUrl="https://bad.example/steal?type=x&token=y")
    hosts.add_version(12, 34, [odd])
    url = find(hosts, "civitai:12@34").url
    assert url == f"{hosts.hosts.civitai}/api/download/models/34?type=Model&format=SafeTensor"


def test_an_unknown_model_names_the_token_to_set(hosts: WeightHosts) -> None:
    with pytest.raises(DownloadFailed, match=r"model 12 on CivitAI.*set CIVITAI_TOKEN"):
        find(hosts, "civitai:12")


# Tokens


def test_a_token_goes_to_its_own_host_only(hosts: WeightHosts) -> None:
    hosts.add_repository("o/r", {"x.safetensors": 5000}, token="hub-token")  # noqa: S106
    hosts.add_version(12, 34, MANY)
    credentials = {"127.0.0.1": "hub-token"}

    place = find(hosts, "o/r", credentials=credentials)
    find(hosts, "civitai:12@34", credentials=credentials)

    assert [question.token for question in hosts.asked] == ["hub-token", ""]
    assert place.credentials == {}


def test_a_token_does_not_follow_a_redirect(hosts: WeightHosts) -> None:
    elsewhere = f"{hosts.hosts.civitai}/moved"
    hosts.tell(REPOSITORY, status=302, headers={"Location": elsewhere})
    hosts.tell("/civitai/moved", {"sha": "a" * 40, "siblings": [{"rfilename": "x.sft"}]})
    find(hosts, "o/r", credentials={"127.0.0.1": "hub-token"})
    assert [question.token for question in hosts.asked] == ["hub-token", ""]


def test_a_token_in_an_address_is_used_for_it_and_shown_nowhere(
    hosts: WeightHosts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hosts.add_version(12, 34, MANY)

    place = find(
        hosts,
        "https://civitai.com/api/download/models/34?token=s3cret",
        credentials={"localhost": "another"},
    )

    assert place.credentials == {"localhost": "s3cret"}
    assert [question.token for question in hosts.asked] == ["s3cret"]
    assert "s3cret" not in place.url + place.identity + place.shown + repr(place) + caplog.text
    assert not any("s3cret" in question.query for question in hosts.asked)


# Replicate, GitHub and the rest of the web


@pytest.mark.parametrize("version", ["", "ab" * 32])
def test_a_model_on_replicate_is_a_tar(hosts: WeightHosts, version: str) -> None:
    place = find(hosts, f"replicate:o/m:{version}".rstrip(":"))
    path = f"/o/m/versions/{version}" if version else "/o/m"
    assert place.url == f"{hosts.hosts.replicate}{path}/_weights"
    assert (place.extract, place.member, place.name) == ("tar", "", "")
    assert hosts.asked == []


RELEASE = "https://github.com/o/r/releases/download/v%2F1/x.pth"


def test_a_release_is_fetched_as_it_is_without_a_token(hosts: WeightHosts) -> None:
    assert find(hosts, RELEASE, credentials={"127.0.0.1": "t"}).url == RELEASE
    assert hosts.asked == []


@pytest.mark.parametrize("host", ["localhost", "github.com"])
@pytest.mark.parametrize("latest", [False, True])
def test_a_private_release_is_found_by_its_api(hosts: WeightHosts, host: str, latest: bool) -> None:
    stored = hosts.add_release("v%2F1", {"a.pth": 10, "x.pth": 20}, token="gh")  # noqa: S106
    text = "https://github.com/o/r/releases/latest/download/x.pth" if latest else RELEASE

    place = find(hosts, text, credentials={host: "gh"})

    assert place.url == f"{stored}/2?sig=s3cret&se=2030"
    assert (place.size, place.sha256, place.name) == (20, digest("x.pth"), "x.pth")
    assert place.identity == text
    assert "s3cret" not in place.shown + repr(place)
    assert hosts.asked[-2].headers["Accept"] == "application/octet-stream"
    assert [question.token for question in hosts.asked] == ["gh", "gh", ""]


def test_a_release_without_the_file_says_so(hosts: WeightHosts) -> None:
    hosts.add_release("v%2F1", {"a.pth": 10})
    with pytest.raises(DownloadFailed, match=r"has no file 'x\.pth'"):
        find(hosts, RELEASE, credentials={"localhost": "gh"})
    with pytest.raises(DownloadFailed, match="the token in GITHUB_TOKEN may not read it"):
        find(hosts, RELEASE.replace("v%2F1", "v2"), credentials={"localhost": "gh"})


@pytest.mark.parametrize(
    ("text", "name", "extract"),
    [
        ("https://e.com/a/my%20x.safetensors?sig=s3cret", "my x.safetensors", ""),
        ("https://e.com/a/x.tar", "x.tar", "tar"),
        ("https://e.com/a/x.TAR.GZ?y=.zip", "x.TAR.GZ", "tar"),
        ("https://e.com/a/x.zip", "x.zip", "zip"),
        ("https://e.com/download?id=1", "", ""),
        ("https://e.com/download.php?id=1", "", ""),
        ("hf://o/r/x.zip", "x.zip", "zip"),
        ("data:,abc", "", ""),
    ],
)
def test_the_rest_of_the_web_is_as_it_is(
    hosts: WeightHosts, text: str, name: str, extract: str
) -> None:
    address = parse(text)
    assert address is not None
    place = find(hosts, text)
    assert (place.name, place.extract) == (name, extract)
    assert place.identity == canonical(address)
    assert "s3cret" not in place.shown + repr(place)
    assert hosts.asked == []


# The manifest's sources


@pytest.mark.parametrize("url", ["assets/weights/x.safetensors", "file:///models/x.safetensors"])
def test_a_source_on_this_machine_stays_as_it_is(hosts: WeightHosts, url: str) -> None:
    place = source(hosts, Source(url, size=5))
    assert (place.url, place.identity, place.name, place.size) == (url, url, "x.safetensors", 5)


def test_a_source_says_how_its_archive_is_unpacked(hosts: WeightHosts) -> None:
    place = source(
        hosts,
        Source(
            "https://e.com/x.bin",
            extract="tar",
            member="a/x.sft",
            strip=1,
            size=9,
            sha256="ab" * 32,
        ),
    )
    assert (place.extract, place.member, place.strip) == ("tar", "a/x.sft", 1)
    assert (place.size, place.sha256) == (9, "ab" * 32)
    assert source(hosts, Source("https://e.com/x.tar")).extract == ""


def test_a_source_on_hugging_face_comes_from_the_given_endpoint(hosts: WeightHosts) -> None:
    for base in ("https://huggingface.co", hosts.hub_url):
        place = source(hosts, Source(f"{base}/o/r/resolve/main/x.sft", auth="hf"))
        assert place.url == f"{hosts.hub_url}/o/r/resolve/main/x.sft"
        assert place.identity == "https://huggingface.co/o/r/resolve/main/x.sft"


def test_a_source_of_civitai_gets_what_its_api_tells(hosts: WeightHosts) -> None:
    hosts.add_version(12, 34, MANY)
    place = source(hosts, Source("https://civitai.com/api/download/models/34", auth="civitai"))
    assert place.sha256 == digest("full.safetensors")


def test_a_source_takes_its_token_from_the_environment(hosts: WeightHosts) -> None:
    wanting = Source("https://e.com/x.sft?sig=s3cret", auth="bearer_env", env="MY_TOKEN")

    place = source(hosts, wanting, environment={"MY_TOKEN": "mine"}, credentials={"e.org": "t"})

    assert place.credentials == {"e.com": "mine"}
    assert "mine" not in repr(place)
    with pytest.raises(DownloadFailed, match="MY_TOKEN is not set") as caught:
        source(hosts, wanting)
    assert "s3cret" not in str(caught.value)


def test_a_token_from_the_environment_also_opens_the_api(hosts: WeightHosts) -> None:
    hosts.add_repository("o/r", {"x.safetensors": 5000}, token="mine")  # noqa: S106
    wanting = Source("https://huggingface.co/o/r", auth="bearer_env", env="MY_TOKEN")
    place = source(hosts, wanting, environment={"MY_TOKEN": "mine"})
    assert (place.name, place.credentials) == ("x.safetensors", {"127.0.0.1": "mine"})


@pytest.mark.parametrize(
    ("stated", "asked", "noted"),
    [
        ("loras", "checkpoints", True),
        ("vae", "diffusion_models", True),
        ("loras", "loras", False),
        ("", "loras", False),
        ("loras", "", False),
        ("unet", "diffusion_models", False),
        ("checkpoints", "diffusion_models", False),
    ],
)
def test_notes_a_folder_that_the_host_does_not_name(stated: str, asked: str, noted: bool) -> None:
    note = wrong_folder(stated, asked)
    assert bool(note) is noted
    if noted:
        assert stated in note
        assert asked in note
