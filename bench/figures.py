"""Figures of benchmarks with their targets, printed as a table or as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from services.common.percentiles import percentile as percentile

WIDTH = 150
"""Width of the table, characters, so that each figure has one line even without a terminal."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number with its target."""

    name: str
    value: float
    unit: str
    """Unit, such as ms, reports/s or s of CPU; `x` where `against` names a peer."""
    target: float | None = None
    """Limit for the value; None where nothing is promised."""
    met: bool | None = None
    against: str | None = None
    """Peer that was measured in the same run; `value` is then the ratio to it."""


def at_most(name: str, value: float, unit: str, *, target: float) -> Figure:
    """A figure that may not exceed its target. NaN doesn't meet it."""
    return Figure(name=name, value=value, unit=unit, target=target, met=value <= target)


def at_least(name: str, value: float, unit: str, *, target: float) -> Figure:
    """A figure that must reach its target."""
    return Figure(name=name, value=value, unit=unit, target=target, met=value >= target)


def to_json(machine: Mapping[str, Any], versions: Mapping[str, str], figures: Sequence[Figure]) -> dict[str, Any]:
    """The object that --json prints. Infinite values become null, because JSON can't represent them."""
    return {
        "machine": dict(machine),
        "versions": dict(versions),
        "figures": [
            asdict(figure) | {"value": round(figure.value, 3) if math.isfinite(figure.value) else None}
            for figure in figures
        ],
    }


def table(figures: Sequence[Figure]) -> Table:
    """Printable table of the figures."""
    printed = Table("figure", "value", "unit", "target", "met", "against", box=None)
    printed.columns[1].justify = "right"
    for figure in figures:
        target = "" if figure.target is None else f"{figure.target:g}"
        met = {None: "", True: "yes", False: "[bold red]NO[/]"}[figure.met]
        printed.add_row(figure.name, f"{figure.value:,.1f}", figure.unit, target, met, figure.against or "")
    return printed


def show(machine: Mapping[str, Any], versions: Mapping[str, str], figures: Sequence[Figure], *, as_json: bool) -> None:
    """Prints the figures of a run with the machine and the versions that they were measured on."""
    if as_json:
        print(json.dumps(to_json(machine, versions, figures)))
        return
    out = Console(highlight=False, soft_wrap=True, width=WIDTH)
    out.print(", ".join(f"{name} {value}" for name, value in {**machine, **versions}.items()))
    out.print(table(figures))
