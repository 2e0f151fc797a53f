"""`comfy-runner boot`: one start of ComfyUI, and where its seconds go."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from comfy_runner import booting
from comfy_runner.booting import Boot
from comfy_runner.comfyui.phases import Phase
from comfy_runner.command_line import JsonOption, errors_as_json
from comfy_runner.config import Config
from comfy_runner.console import Narration, table_console
from comfy_runner.weights.weight import human_size

SHOWN = 12
"""How many packages, and how many node packs, are shown."""

BAR = 30
"""Characters of a bar."""


def boot(
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell what is imported, and what would help.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start ComfyUI once with these settings, tell how long each phase takes, and end it.

    A profiled start is not forked, so that all imports are in it.
    """
    config = Config.from_environment()
    with errors_as_json(as_json), Narration() as narration:
        narration.boot()
        measured = booting.measure(config, profile=profile)
        narration.booted()
    if as_json:
        print(json.dumps(measured.as_json()))
        return
    out = table_console()
    _show_phases(out, measured)
    if measured.times is not None:
        _show_profile(out, measured)


def _show_phases(out: Console, boot: Boot) -> None:
    table = _table("Phase", "Start", "Seconds", "Share", *([""] if out.is_terminal else []))
    for phase in boot.phases:
        table.add_row(*_cells(out, boot, phase))
        for pack in phase.parts:
            table.add_row(*_cells(out, boot, pack, indent="  node pack "))
    out.print(table)
    out.print(f"ComfyUI answered after {boot.seconds:.2f} s, on {boot.device}.")


def _cells(out: Console, boot: Boot, phase: Phase, indent: str = "") -> list[str | Bar]:
    start, end = phase.began - boot.began, phase.ended - boot.began
    share = phase.seconds / boot.seconds if boot.seconds else 0.0
    cells = [f"{indent}{phase.name}", f"{start:.2f}", f"{phase.seconds:.2f}", f"{share:.0%}"]
    bar = [Bar(boot.seconds, start, end, width=BAR)] if out.is_terminal else []
    return [*cells, *bar]


def _show_profile(out: Console, boot: Boot) -> None:
    if boot.packs:
        packs = _table("Node pack", "Seconds", "Of it for")
        for name, seconds in boot.packs[:SHOWN]:
            parts = [row for row in boot.packages_of(name) if row[1] >= booting.WORTH_TELLING]
            told = ", ".join(f"{part} {took:.2f}" for part, took in parts[:SHOWN])
            packs.add_row(name, f"{seconds:.2f}", told)
        out.print("", packs, sep="\n")
    packages = _table("Package", "Seconds", "Modules")
    for name, modules, seconds in boot.packages()[:SHOWN]:
        packages.add_row(name, f"{seconds:.2f}", str(modules))
    out.print("", packages, sep="\n")
    out.print("", *_facts(boot), "", "What to gain, in seconds at most:", sep="\n")
    found = booting.gains(boot)
    for gain in found:
        out.print(f"  {gain.seconds:.2f}  {gain.what}", f"        {gain.cure}", sep="\n")
    if not found:
        out.print("  Nothing that is known.")


def _facts(boot: Boot) -> Sequence[str]:
    times = boot.times
    if times is None:
        return ()
    disk = "not known" if times.disk is None else human_size(times.disk)
    count = sum(each.modules for each in times.compiled)
    lazy = f"not used: {boot.why_not_lazy}" if boot.why_not_lazy else "used"
    forks = boot.why_never_forked
    return (
        f"Computed for {times.cpu:.2f} s of {boot.seconds:.2f} s; from the disk: {disk}.",
        f"Modules without bytecode: {count}.",
        f"Lazy boot: {lazy}.",
        f"Fork server: {f'not used: {forks}' if forks else 'used, but not to measure this'}.",
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column in ("Start", "Seconds", "Share", "Modules")
        table.add_column(column, justify="right" if is_number else "left")
    return table
