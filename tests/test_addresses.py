"""What people type for a weight means the place that they mean, and keeps no secret."""

import re
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_runner.errors import InvalidInput
from comfy_runner.fetch.urls import is_signed
from comfy_runner.weights.hosts.addresses import (
    Address,
    CivitAI,
    Data,
    HuggingFace,
    Plain,
    Replicate,
    canonical,
    is_immutable,
    parse,
    shown,
)

FILE = HuggingFace(repo_id="o/r", path="a/x.safetensors")
REPO = HuggingFace(repo_id="o/r")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
VERSION = "ab" * 32
DRIVE = "https://drive.usercontent.google.com/download?id=1AbC&export=download&confirm=t"

MEANT: list[tuple[str, Address | None]] = [
    # Hugging Face: files
    ("https://huggingface.co/o/r/resolve/main/a/x.safetensors", FILE),
    ("https://huggingface.co/o/r/blob/main/a/x.safetensors", FILE),
    ("https://huggingface.co/o/r/raw/main/a/x.safetensors", FILE),
    ("https://huggingface.co/o/r/tree/main/a/x.safetensors", FILE),
    ("https://huggingface.co/o/r/resolve/main/a/x.safetensors?download=true#top", FILE),
    ("  HTTPS://HuggingFace.co/o/r/blob/main/a/x.safetensors\n", FILE),
    ("http://www.huggingface.co:80/o/r/blob/main//a/x.safetensors", FILE),
    ("huggingface.co/o/r/blob/main/a/x.safetensors", FILE),
    ("hf.co/o/r/blob/main/a/x.safetensors", FILE),
    ("hf://o/r/a/x.safetensors", FILE),
    ("hf://o/r@main/a/x.safetensors", FILE),
    ("hf:o/r/a/x.safetensors", FILE),
    (
        "https://huggingface.co/o/r/resolve/refs%2Fpr%2F7/my%20model.safetensors",
        HuggingFace(repo_id="o/r", revision="refs/pr/7", path="my model.safetensors"),
    ),
    (
        "https://huggingface.co/o/r/resolve/refs/pr/7/x.sft",
        HuggingFace(repo_id="o/r", revision="refs/pr/7", path="x.sft"),
    ),
    (
        "hf://o/r@refs/pr/7/x.sft",
        HuggingFace(repo_id="o/r", revision="refs/pr/7", path="x.sft"),
    ),
    ("https://huggingface.co/o/r/tree", REPO),
    ("hf://o/r@v1/x.sft", HuggingFace(repo_id="o/r", revision="v1", path="x.sft")),
    (
        "https://huggingface.co/gpt2/resolve/main/model.safetensors",
        HuggingFace(repo_id="gpt2", path="model.safetensors"),
    ),
    (
        "https://huggingface.co/datasets/o/r/resolve/main/4x.pth",
        HuggingFace(repo_id="o/r", path="4x.pth", kind="datasets"),
    ),
    ("hf://datasets/o/r/4x.pth", HuggingFace(repo_id="o/r", path="4x.pth", kind="datasets")),
    (
        "https://huggingface.co/spaces/o/r/resolve/main/4x.pth",
        HuggingFace(repo_id="o/r", path="4x.pth", kind="spaces"),
    ),
    (
        "https://me:hf_s3cret@huggingface.co/o/r/resolve/main/a/x.safetensors",
        HuggingFace(repo_id="o/r", path="a/x.safetensors", token="hf_s3cret"),  # noqa: S106
    ),
    ("https://hf_s3cret@hf.co/o/r", HuggingFace(repo_id="o/r", token="hf_s3cret")),  # noqa: S106
    # Hugging Face: repositories
    ("https://somebody@huggingface.co/o/r", REPO),
    ("o/r", REPO),
    ("stabilityai/sdxl-turbo.v1.5", HuggingFace(repo_id="stabilityai/sdxl-turbo.v1.5")),
    ("https://huggingface.co/o/r", REPO),
    ("https://huggingface.co/o/r/", REPO),
    ("https://huggingface.co/o/r/tree/main", REPO),
    ("hf:o/r", REPO),
    ("hf://o/r@v1", HuggingFace(repo_id="o/r", revision="v1")),
    (
        "https://huggingface.co/o/r/tree/v1/vae/fp16",
        HuggingFace(repo_id="o/r", revision="v1", directory="vae/fp16"),
    ),
    ("hf://o/r/vae", HuggingFace(repo_id="o/r", directory="vae")),
    # CivitAI
    ("https://civitai.com/models/12", CivitAI(model_id=12)),
    ("https://civitai.com/models/12/a-slug", CivitAI(model_id=12)),
    (
        "https://civitai.com/models/12/a-slug?modelVersionId=34&dialog=x",
        CivitAI(model_id=12, version_id=34),
    ),
    ("https://civitai.red/models/12?modelVersionId=34", CivitAI(model_id=12, version_id=34)),
    ("https://www.civitai.green/models/12", CivitAI(model_id=12)),
    ("civitai.com/models/12", CivitAI(model_id=12)),
    ("https://civitai.com/model-versions/34", CivitAI(version_id=34)),
    ("https://civitai.com/api/v1/model-versions/34", CivitAI(version_id=34)),
    ("https://civitai.com/api/v1/models/12", CivitAI(model_id=12)),
    ("https://civitai.com/api/download/models/34", CivitAI(version_id=34)),
    (
        "https://civitai.com/api/download/models/34"
        "?type=Pruned%20Model&format=SafeTensor&size=pruned&fp=fp16&token=s3cret",
        CivitAI(
            version_id=34,
            type="Pruned Model",
            format="SafeTensor",
            size="pruned",
            fp="fp16",
            token="s3cret",  # noqa: S106
        ),
    ),
    (
        "https://civitai.com/api/download/models/34?fileId=56",
        CivitAI(version_id=34, file_id=56),
    ),
    ("civitai:12@34", CivitAI(model_id=12, version_id=34)),
    (
        "https://civitai.com/api/download/models/34?type=Model&format=GGUF&quantType=Q4_K_M",
        CivitAI(version_id=34, type="Model", format="GGUF", quant="Q4_K_M"),
    ),
    # AIR
    (
        "urn:air:sdxl:lora:civitai:328553@368189",
        CivitAI(model_id=328553, version_id=368189, model_folder="loras"),
    ),
    (
        "air:flux1:checkpoint:civitai:12@34+56.safetensors",
        CivitAI(
            model_id=12,
            version_id=34,
            file_id=56,
            format="safetensors",
            model_folder="checkpoints",
        ),
    ),
    ("URN:AIR:sd1:embedding:civitai:12", CivitAI(model_id=12, model_folder="embeddings")),
    (
        "urn:air:sdxl:vae:huggingface:o/r@main",
        HuggingFace(repo_id="o/r", model_folder="vae"),
    ),
    (
        "urn:air:sdxl:vae:huggingface:o/r@x.safetensors",
        HuggingFace(repo_id="o/r", path="x.safetensors", model_folder="vae"),
    ),
    (
        "urn:air:flux1:lora:huggingface:o/r/sub@x.safetensors",
        HuggingFace(repo_id="o/r", path="sub/x.safetensors", model_folder="loras"),
    ),
    (
        "urn:air:sdxl:controlnet:huggingface:o/r@main.safetensors",
        HuggingFace(repo_id="o/r", format="safetensors", model_folder="controlnet"),
    ),
    (
        "urn:air:flux1:checkpoint:huggingface:o/r@main/a/x.safetensors",
        HuggingFace(repo_id="o/r", path="a/x.safetensors", model_folder="checkpoints"),
    ),
    (
        "urn:air:flux1:vae:huggingface:o/r/main@x.safetensors",
        HuggingFace(repo_id="o/r", path="main/x.safetensors", model_folder="vae"),
    ),
    ("urn:air:model:huggingface:o/r", REPO),
    (
        "sdxl:lora:civitai:12@34",
        CivitAI(model_id=12, version_id=34, model_folder="loras"),
    ),
    # Replicate
    ("https://replicate.com/o/m", Replicate(owner="o", model="m")),
    ("https://replicate.com/o/m/train", Replicate(owner="o", model="m")),
    ("https://replicate.com/o/m/_weights", Replicate(owner="o", model="m")),
    (
        f"https://replicate.com/o/m/versions/{VERSION}",
        Replicate(owner="o", model="m", version=VERSION),
    ),
    (
        f"https://replicate.com/o/m/versions/{VERSION}/_weights",
        Replicate(owner="o", model="m", version=VERSION),
    ),
    ("replicate:o/m", Replicate(owner="o", model="m")),
    (f"replicate:o/m:{VERSION}", Replicate(owner="o", model="m", version=VERSION)),
    (f"o/m:{VERSION}", Replicate(owner="o", model="m", version=VERSION)),
    (
        "https://replicate.delivery/xezq/1/trained_model.tar",
        Plain(url="https://replicate.delivery/xezq/1/trained_model.tar"),
    ),
    (
        "https://weights.replicate.delivery/default/x/y.tar",
        Plain(url="https://weights.replicate.delivery/default/x/y.tar"),
    ),
    # Elsewhere
    (
        "https://github.com/o/r/releases/download/v1/x.pth",
        Plain(url="https://github.com/o/r/releases/download/v1/x.pth"),
    ),
    (
        "https://github.com/o/r/blob/main/x.pth?raw=true",
        Plain(url="https://github.com/o/r/raw/main/x.pth"),
    ),
    (
        "https://b.s3.amazonaws.com/x.safetensors?X-Amz-Signature=1%2F2&X-Amz-Date=3",
        Plain(url="https://b.s3.amazonaws.com/x.safetensors?X-Amz-Signature=1%2F2&X-Amz-Date=3"),
    ),
    ("https://example.com/my model.ckpt", Plain(url="https://example.com/my%20model.ckpt")),
    (
        "https://hf-mirror.com/o/r/blob/main/x.sft",
        Plain(url="https://hf-mirror.com/o/r/resolve/main/x.sft"),
    ),
    ("http://github.com:80/o/r/raw/main/x.pth", Plain(url="https://github.com/o/r/raw/main/x.pth")),
    (
        "https://www.dropbox.com/scl/fi/1a2b/x.sft?rlkey=k&st=s&dl=0",
        Plain(url="https://www.dropbox.com/scl/fi/1a2b/x.sft?rlkey=k&dl=1"),
    ),
    (
        "https://www.dropbox.com/s/1a2b/my%20x.sft",
        Plain(url="https://www.dropbox.com/s/1a2b/my%20x.sft?dl=1"),
    ),
    (
        "https://modelscope.cn/models/o/r/file/view/master/x.sft?status=2",
        Plain(url="https://modelscope.cn/models/o/r/resolve/master/x.sft"),
    ),
    (
        "https://www.modelscope.cn/api/v1/models/o/r/repo?Revision=master&FilePath=x.sft",
        Plain(
            url="https://www.modelscope.cn/api/v1/models/o/r/repo?Revision=master&FilePath=x.sft"
        ),
    ),
    (
        "https://gitlab.com/o/r/-/blob/main/x.sft?ref_type=heads",
        Plain(url="https://gitlab.com/o/r/-/raw/main/x.sft"),
    ),
    ("https://huggingface.co:8080/o", Plain(url="https://huggingface.co:8080/o")),
    ("https://drive.google.com/file/d/1AbC/view?usp=sharing", Plain(url=DRIVE)),
    ("https://drive.google.com/uc?export=download&id=1AbC", Plain(url=DRIVE)),
    ("https://drive.google.com/open?id=1AbC", Plain(url=DRIVE)),
    (
        "https://drive.google.com/file/d/1AbC/view?resourcekey=0-k",
        Plain(url=f"{DRIVE}&resourcekey=0-k"),
    ),
    (
        "urn:air:flux1:vae:huggingface:o/r.safetensors",
        HuggingFace(repo_id="o/r", format="safetensors", model_folder="vae"),
    ),
    (DRIVE, Plain(url=DRIVE)),
    (
        "data:application/octet-stream;base64,AAAA",
        Data(url="data:application/octet-stream;base64,AAAA"),
    ),
    # Ordinary names of models
    ("x.safetensors", None),
    ("SDXL/style/x.safetensors", None),
    ("SDXL/x.safetensors", None),
    ("SDXL\\x.safetensors", None),
    ("o/r/vae", None),
    ("styles/words.txt", None),
    ("a style/b", None),
    ("C:\\models\\x.safetensors", None),
    ("../x", None),
    ("/models/x", None),
    ("o/r@v1", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "meant"), MEANT, ids=[text for text, _ in MEANT])
def test_means_what_is_meant(text: str, meant: Address | None) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("o/r/a/x.safetensors", FILE),
        ("o/r/resolve/main/a/x.safetensors", FILE),
        ("o/r@v1", HuggingFace(repo_id="o/r", revision="v1")),
        ("o/r@v1/x.sft", HuggingFace(repo_id="o/r", revision="v1", path="x.sft")),
        ("o/r/vae", HuggingFace(repo_id="o/r", directory="vae")),
        ("SDXL/x.safetensors", None),
        ("x.safetensors", None),
    ],
)
def test_takes_a_path_for_a_repository_only_when_told(text: str, meant: Address | None) -> None:
    assert parse(text, bare_repositories=True) == meant


@pytest.mark.parametrize("endpoint", ["https://hf.example", "https://hf.example/mirror/hub/"])
def test_knows_the_addresses_of_a_mirror(endpoint: str) -> None:
    text = f"{endpoint.rstrip('/')}/o/r/blob/main/a/x.safetensors"
    assert parse(text, hf_endpoint=endpoint) == FILE
    assert isinstance(parse(text), Plain)
    assert parse("https://hf.example.org/o", hf_endpoint=endpoint) == Plain(
        url="https://hf.example.org/o"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://huggingface.co/spaces/o/r", "a space is a program"),
        ("https://huggingface.co/o", "no repository"),
        ("https://huggingface.co/docs/x", "a page of Hugging Face"),
        ("https://huggingface.co/models", "a page of Hugging Face"),
        ("https://huggingface.co/o/r/discussions/3", "a page of Hugging Face"),
        ("https://huggingface.co/o/r/resolve/main", "names no file"),
        ("https://huggingface.co/o/r/resolve", "names no file"),
        ("https://huggingface.co/o/r/resolve/main/a/..%2Fx.sft", "malformed"),
        ("https://huggingface.co/o/r/resolve/main/../x.sft", "malformed"),
        ("hf:r", "no repository"),
        ("hf://o/r@/x.sft", "malformed"),
        ("https://civitai.com/images/12", "no model on CivitAI"),
        ("https://civitai.com/posts/12", "no model on CivitAI"),
        ("https://civitai.com/user/somebody", "no model on CivitAI"),
        ("https://civitai.com/models/abc", "numbers"),
        ("https://civitai.com/models/12?modelVersionId=x", "numbers"),
        ("https://civitai.com/api/download/models/12?type=a%2Fb", "does not know"),
        ("civitai:abc", "numbers"),
        ("urn:air:sdxl:lora:civitai:abc", "numbers"),
        ("urn:air:sdxl:lora:civitai:1+2", "needs its version"),
        ("urn:air:sdxl:lora:elsewhere:12", "'elsewhere'"),
        ("urn:air:12", "no complete AIR"),
        ("urn:isbn:12", "no complete AIR"),
        ("urn:air:sdxl:vae:huggingface:r", "no repository"),
        ("replicate:o", "no model on Replicate"),
        ("replicate:o/m:123", "no model on Replicate"),
        ("https://replicate.com/o", "no model on Replicate"),
        ("https://replicate.com/p/abc", "no model on Replicate"),
        ("https://replicate.com/o/m/versions/123", "not complete"),
        ("https://github.com/o/r", "a page"),
        ("https://github.com/o/r/releases/tag/v1", "a page"),
        ("https://drive.google.com/drive/folders/1AbC", "no file on Google Drive"),
        ("https://www.dropbox.com/scl/fo/1a2b/h?rlkey=k", "no file on Dropbox"),
        ("https://huggingface.co/o/r?format=..%2Fx", "no extension"),
        ("s3://bucket/x.safetensors", "presigned"),
        ("ftp://example.com/x.safetensors", "no web address"),
        ("file:///etc/passwd", "models folder"),
        ("https:///x", "no host"),
        ("https://exa mple.com/x", "no host"),
        ("https://good.example\\@bad.example/x", "no host"),
        ("https://[::1/x", "malformed"),
        ("https://example.com:port/x", "malformed"),
        ("https://example.com/x\u202ey", "cannot be seen"),
        ("https://example.com/x\ny", "cannot be seen"),
    ],
)
def test_refuses_what_cannot_be_meant_and_says_why(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(why)) as caught:
        parse(text)
    assert [problem.code for problem in caught.value.problems] == ["bad_url"]


def test_an_error_shows_no_secret() -> None:
    for text in (
        "https://me:s3cret@civitai.com/images/1?token=s3cret#s3cret",
        "s3://me:s3cret@bucket/x?X-Amz-Signature=s3cret",
        "hf:r?token=s3cret",
    ):
        with pytest.raises(InvalidInput) as caught:
            parse(text)
        assert "s3cret" not in str(caught.value)


def identity(text: str, **options: str) -> str:
    address = parse(text, **options)  # type: ignore[arg-type]
    assert address is not None
    return canonical(address)


def test_every_spelling_of_a_place_has_one_identity_and_every_place_its_own() -> None:
    hub = [text for text, address in MEANT if address == FILE]
    assert {identity(text) for text in hub} == {
        "https://huggingface.co/o/r/resolve/main/a/x.safetensors"
    }
    others = ["o/r", "hf://o/r@v1", "hf://o/r/vae", "hf://datasets/o/r", "hf://o/r/x.sft", "o/s"]
    others += ["civitai:1", "civitai:1@2", "civitai:1@2+3", "replicate:o/r", f"o/r:{VERSION}"]
    assert len({identity(text) for text in [*others, hub[0]]}) == 12
    assert identity("https://civitai.red/models/1?modelVersionId=2") == identity(
        "https://civitai.com/api/download/models/2?token=x"
    )
    assert identity("https://civitai.com/api/download/models/2?fp=fp16&type=Model") == identity(
        "https://civitai.com/api/download/models/2?type=model&fp=FP16"
    )
    assert identity("https://civitai.com/api/download/models/2?fp=fp16") != identity(
        "https://civitai.com/api/download/models/2?fp=fp32"
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "https://b.s3.amazonaws.com/k/x.sft?X-Amz-Algorithm=a&X-Amz-Credential=c&X-Amz-Date=d"
            "&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=s&x-id=GetObject"
            "&X-Amz-Security-Token=t&response-content-disposition=attachment&versionId=7",
            "https://b.s3.amazonaws.com/k/x.sft?versionId=7",
        ),
        (
            "https://b.s3.amazonaws.com/x.sft?AWSAccessKeyId=a&Signature=s&Expires=1",
            "https://b.s3.amazonaws.com/x.sft",
        ),
        (
            "https://storage.googleapis.com/b/x.sft?X-Goog-Algorithm=a&X-Goog-Credential=c"
            "&X-Goog-Date=d&X-Goog-Expires=1&X-Goog-SignedHeaders=host&X-Goog-Signature=s",
            "https://storage.googleapis.com/b/x.sft",
        ),
        (
            "https://storage.googleapis.com/b/x.sft?GoogleAccessId=a&Expires=1&Signature=s",
            "https://storage.googleapis.com/b/x.sft",
        ),
        (
            "https://a.blob.core.windows.net/c/x.sft?sv=2022&ss=b&srt=o&sp=r&st=1&se=2&spr=https"
            "&sr=b&sip=1.2.3.4&skoid=k&sktid=t&skt=1&ske=2&sks=b&skv=v&sig=s&snapshot=5",
            "https://a.blob.core.windows.net/c/x.sft?snapshot=5",
        ),
        (
            "https://d1.cloudfront.net/x.sft?Policy=p&Signature=s&Key-Pair-Id=k&Expires=1",
            "https://d1.cloudfront.net/x.sft",
        ),
        ("https://e.com/x.sft?token=t&api_key=k&access_token=a", "https://e.com/x.sft"),
        ("https://e.com/x.sft?download=true#part", "https://e.com/x.sft"),
        ("https://me:pw@E.com:443/x.sft", "https://e.com/x.sft"),
        ("http://E.com.:80/x.sft", "http://e.com/x.sft"),
        ("http://E.com:8080", "http://e.com:8080/"),
        ("https://[::1]:8080/x.sft", "https://[::1]:8080/x.sft"),
        ("https://e.com/%7Ea/b%2fc%20d", "https://e.com/~a/b%2Fc%20d"),
        ("https://e.com/get?b=2&a=1&b=1&c=", "https://e.com/get?a=1&b=2&b=1&c="),
        ("https://e.com/get?download=a.sft", "https://e.com/get?download=a.sft"),
        ("https://e.com/get?sp=1&se=2", "https://e.com/get?se=2&sp=1"),
        ("https://e.com/get?key=models/x.sft", "https://e.com/get?key=models%2Fx.sft"),
        (
            "https://e.com/get?file=1&key=AIzaS3cret",
            "https://e.com/get?file=1&key=sha256-9f4e887c5bd7efa5c393b70a4e1f0a14",
        ),
        ("https://e.com/get?name=%FF", "https://e.com/get?name=%FF"),
    ],
)
def test_an_identity_keeps_what_names_the_file_and_no_more(text: str, kept: str) -> None:
    assert identity(text) == kept
    assert identity(kept) == kept


def test_nothing_that_may_be_shown_or_kept_holds_a_secret() -> None:
    for text in (
        "https://civitai.com/api/download/models/34?token=s3cret",
        "https://civitai.com/models/34?api_key=s3cret",
        "https://me:s3cret@huggingface.co/o/r/resolve/main/x.sft",
        "https://r8_s3cret@replicate.com/o/m",
        "https://s3cret@replicate.com/o/m",
        "https://me:s3cret@example.com/x.sft?X-Amz-Signature=s3cret#s3cret",
        "https://example.com/x.sft?whatever=s3cret",
        "data:;base64,s3cret",
    ):
        address = parse(text)
        assert address is not None
        assert "s3cret" not in shown(address) + repr(address)
        if "whatever" not in text:
            assert "s3cret" not in canonical(address)


@pytest.mark.parametrize(
    ("text", "immutable"),
    [
        (f"hf://o/r@{COMMIT}/x.sft", True),
        (f"hf://o/r@{COMMIT}", False),
        ("hf://o/r@0123456/x.sft", False),
        ("hf://o/r/x.sft", False),
        ("https://civitai.com/api/download/models/34?fileId=56", True),
        ("https://civitai.com/api/download/models/34", False),
        (f"o/m:{VERSION}", False),
        ("https://example.com/x.sft", False),
        ("data:,x", True),
    ],
)
def test_knows_which_content_can_never_change(text: str, immutable: bool) -> None:
    address = parse(text)
    assert address is not None
    assert is_immutable(address) is immutable


SECRET_NAMES = re.findall(
    r"\S+",
    "token access_token api_key apikey X-Amz-Signature X-Amz-Security-Token Signature sig "
    "X-Goog-Signature AWSAccessKeyId GoogleAccessId Policy Key-Pair-Id Authorization password "
    "client_secret OSSAccessKeyId q-signature auth jwt",
)

words = st.text("abcXYZ019._-~ é%+&=?/", max_size=12)
queries = st.lists(
    st.tuples(
        st.sampled_from(["a", "token", "X-Amz-Signature", "sig", "sp", "key", "v", "fileId"]),
        words,
    ),
    max_size=4,
)
hosts = st.sampled_from(
    ["example.com", "huggingface.co", "civitai.com", "replicate.com", "github.com", "[::1]:80"]
)
urls = st.builds(
    lambda host, path, pairs: f"https://{host}/{'/'.join(map(quote, path))}?{urlencode(pairs)}",
    hosts,
    st.lists(st.one_of(words, st.sampled_from(["resolve", "models", "12", "o", "r"])), max_size=6),
    queries,
)
typed = st.one_of(st.text(max_size=60), urls, st.sampled_from([text for text, _ in MEANT]))


@given(typed, st.booleans())
def test_any_text_is_an_address_a_name_or_refused(text: str, bare: bool) -> None:
    try:
        address = parse(text, bare_repositories=bare)
    except InvalidInput:
        return
    if address is None:
        return
    kept = canonical(address)
    assert shown(address).isprintable()
    if isinstance(address, Data):
        return
    again = parse(kept)
    assert again is not None
    assert canonical(again) == kept


@given(
    st.sampled_from(SECRET_NAMES),
    st.sampled_from(["lower", "upper", "title", "swapcase"]),
    st.lists(st.tuples(st.sampled_from(["id", "v", "name"]), words), max_size=3),
    st.integers(0, 3),
)
def test_a_secret_in_the_query_never_reaches_the_identity(
    name: str, spelling: str, others: list[tuple[str, str]], position: int
) -> None:
    pairs = [*others[:position], (getattr(name, spelling)(), "s3cret!"), *others[position:]]
    url = f"https://me:s3cret!@example.com/x.sft?{urlencode(pairs)}"

    kept = identity(url)

    assert "s3cret" not in kept
    unknown = kept == identity(f"https://example.com/x.sft?{urlencode(others)}")
    # Who fetches a signed URL asks its host each time; any other must not open the same file.
    assert unknown is is_signed(url)
    assert unknown is (kept == identity(url.replace("s3cret", "another")))


@pytest.mark.parametrize("name", ["session", "user_token", "q-signature", "pass", "rlkey", "md5"])
def test_who_has_another_secret_does_not_get_the_same_file_unasked(name: str) -> None:
    one, another = (f"https://e.com/x.sft?{name}={value}" for value in ("s3cret", "guessed"))
    assert identity(one) != identity(another) or (is_signed(one) and is_signed(another))
    assert identity(one) != identity("https://e.com/x.sft") or is_signed(one)
    assert "s3cret" not in identity(one)


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("urn:air:sdxl:lora:civitai:12.safetensors", "urn:air:sdxl:lora:civitai:12.ckpt"),
        (
            "urn:air:sdxl:vae:huggingface:o/r@main.safetensors",
            "urn:air:sdxl:vae:huggingface:o/r@main.ckpt",
        ),
        (
            "https://civitai.com/api/download/models/34?quantType=Q4_0",
            "https://civitai.com/api/download/models/34?quantType=Q8_0",
        ),
        ("https://e.com/get?download=12", "https://e.com/get?download=13"),
        ("https://e.com/get?sid=12", "https://e.com/get?sid=13"),
        ("https://e.com/get?key=12ab", "https://e.com/get?key=13ab"),
        ("https://e.com/get?f=a&f=b", "https://e.com/get?f=b&f=a"),
    ],
)
def test_what_chooses_another_file_is_another_identity(one: str, another: str) -> None:
    assert identity(one) != identity(another)
