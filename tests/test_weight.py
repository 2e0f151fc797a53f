"""What a weight says of itself."""

import pytest

from comfy_runner.weights.weight import Source, Weight


@pytest.mark.parametrize(
    ("urls", "origin"),
    [
        ((), ""),
        (("https://user:secret@Host.example:444/a.pt?token=secret",), "host.example"),
        (("https://first.example/a.pt", "https://second.example/a.pt"), "first.example"),
        (("assets/a.pt",), "assets/a.pt"),
    ],
)
def test_a_weight_tells_where_it_comes_from(urls: tuple[str, ...], origin: str) -> None:
    sources = tuple(Source(url=url) for url in urls)
    weight = Weight(name="a.pt", folders=("loras",), urls=sources)
    assert weight.origin == origin
    assert weight.as_json()["from"] == origin
