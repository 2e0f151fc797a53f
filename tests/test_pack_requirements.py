"""What packs ask for, held against what we have."""

from comfy_runner.packs import requirements
from comfy_runner.packs.lock import LocalSource, LockedPack

OURS = {"torch": "2.11.0+cu128", "numpy": "2.5.0", "pillow": "12.0.0", "huggingface-hub": "2.4.0"}


def pack(name: str, *texts: str, leave_out: tuple[str, ...] = ()) -> LockedPack:
    return LockedPack(name=name, source=LocalSource(name), requirements=texts, leave_out=leave_out)


def conflicts(*packs: LockedPack) -> list[str]:
    wanted, _ = requirements.asked(packs)
    return [f"{p.input}: {p.what}" for p in requirements.against_ours(wanted, OURS)]


def test_pins_are_read_out_of_a_lock() -> None:
    text = "# head\nA.b==1.0 \\\n    --hash=sha256:00\n    # via x\nc_d==2 ; python_version>'3'\n"
    assert requirements.pins(text) == {"a-b": "1.0", "c-d": "2"}


def test_what_would_move_ours_is_told_by_pack() -> None:
    assert conflicts(
        pack("fox", "torch==2.1.0", "numpy<2", "six"),
        pack("bear", "Pillow>=11", "torch>=2", "torch==2.11.0", "huggingface_hub"),
        pack("cat", "numpy==1.26.4"),
    ) == [
        "pack fox: It asks for torch==2.1.0; we have torch 2.11.0+cu128.",
        "pack fox: It asks for numpy<2; we have numpy 2.5.0.",
        "pack cat: It asks for numpy==1.26.4; we have numpy 2.5.0.",
    ]


def test_torch_is_never_moved_and_others_only_by_us() -> None:
    wanted, _ = requirements.asked([pack("fox", "torch<2", "pillow<1")])
    torch, pillow = requirements.against_ours(wanted, OURS)
    assert torch.hint.startswith("torch is never moved for a pack")
    assert "move pillow in requirements.in" in pillow.hint


def test_what_is_left_out_or_of_another_system_is_not_asked_for() -> None:
    wanted, problems = requirements.asked(
        [
            pack(
                "fox",
                *("torch==1", "pywin32; sys_platform == 'win32'", "git+https://x.example/a"),
                *("six>1", "opencv_python"),
                leave_out=("torch", "git+https://x.example/a", "opencv-python"),
            )
        ]
    )
    assert [each.text for each in wanted] == ["six>1"]
    assert problems == []


def test_what_no_hash_can_pin_is_refused_by_pack() -> None:
    texts = (
        *("git+https://x.example/a", "a @ git+https://x.example/a", "-e ./inner", "a b"),
        *("a @ http://x.example/a.whl", "b @ https://x.example/b.whl"),
    )
    wanted, problems = requirements.asked([pack("fox", *texts)])
    assert [each.name for each in wanted] == ["b"]
    assert len(problems) == 5
    assert {problem.input for problem in problems} == {"pack fox"}
    assert problems[0].hint.endswith("--leave-out 'git+https://x.example/a'")


def test_what_we_have_need_not_be_resolved() -> None:
    wanted, _ = requirements.asked([pack("fox", "numpy", "huggingface_hub[hf_xet]", "six")])
    assert [each.name for each in requirements.missing(wanted, OURS)] == [
        *("huggingface-hub", "six")
    ]


def test_packages_that_are_installed_over_each_other_are_told() -> None:
    wanted, _ = requirements.asked(
        [pack("fox", "opencv-python"), pack("bear", "opencv-python-headless>4", "onnxruntime")]
    )
    assert list(requirements.twins(wanted, OURS)) == [
        "opencv-python and opencv-python-headless are installed over each other (opencv-python for"
        " fox; opencv-python-headless for bear). Leave all but one out with --leave-out, or it is"
        " chance which of them works."
    ]


def test_a_dependency_that_is_installed_over_another_is_told() -> None:
    wanted, _ = requirements.asked([pack("fox", "onnxruntime-gpu", "uses-onnx")])
    (told,) = requirements.twins(wanted, OURS, ["onnxruntime", "uses-onnx", "onnxruntime-gpu"])
    assert "(onnxruntime for another package; onnxruntime-gpu for fox)" in told


def test_who_asks_what_is_told_of_the_packages_in_an_explanation() -> None:
    wanted, _ = requirements.asked([pack("fox", "tiny==1", "six"), pack("bear", "tiny==2")])
    problems = list(requirements.shared(wanted, "Because you require tiny==1 and tiny==2, ..."))
    assert [f"{p.input}: {p.what}" for p in problems] == [
        "package tiny: fox asks for tiny==1; bear asks for tiny==2."
    ]


def test_the_lock_of_packages_names_nothing_of_ours() -> None:
    compiled = (
        "numpy==2.5.0 \\\n    --hash=sha256:00\n    # via -r fox.in\n"
        "six==1.0 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n"
        "    # via\n    #   -r bear.in\n    #   -r fox.in\n"
        "Pillow==12.0.0 \\\n    --hash=sha256:33\n"
    )
    text = requirements.written(compiled, OURS, "mark")
    assert text.splitlines()[2:] == [
        "# Of: mark",
        "six==1.0 \\",
        "    --hash=sha256:11 \\",
        "    --hash=sha256:22",
        "    # via",
        "    #   bear",
        "    #   fox",
    ]
    assert requirements.is_of(text, "mark")
    assert not requirements.is_of(text, "other")


def test_the_mark_changes_with_what_packs_ask_for_and_what_we_have() -> None:
    packs = [pack("fox", "six"), pack("bear", "numpy")]
    mark = requirements.fingerprint(packs, OURS)
    assert requirements.fingerprint(reversed(packs), dict(reversed(OURS.items()))) == mark
    assert requirements.fingerprint(packs, {**OURS, "numpy": "2.6.0"}) != mark
    assert requirements.fingerprint([pack("fox", "six>1"), packs[1]], OURS) != mark
    assert (
        requirements.fingerprint([pack("fox", "six", leave_out=("six",)), packs[1]], OURS) != mark
    )


def test_a_variable_of_this_machine_is_not_asked_for() -> None:
    """uv would put its value into the address, and ask a stranger's server for that."""
    text = "a @ https://x.example/${UV_INDEX_PRIVATE_PASSWORD}/a.whl"
    wanted, problems = requirements.asked([pack("fox", text)])
    assert wanted == []
    assert "the value of a variable of this machine" in problems[0].what


def test_what_cannot_be_judged_is_told_by_pack() -> None:
    deep = f"a; {'(' * 3000}os_name == 'x'{')' * 3000}"
    wanted, problems = requirements.asked([pack("fox", deep), pack("bear", "a; os_name ~= 'x'")])
    assert wanted == []
    assert [problem.input for problem in problems] == ["pack fox", "pack bear"]
    assert [problem.code for problem in problems] == ["bad_requirement", "bad_requirement"]
