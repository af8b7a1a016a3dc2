"""The base of all judges, and what they see: each stored message, each second, and the end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tests.simulation.actors.desk import Desk
from tests.simulation.actors.head_end import HeadEnd
from tests.simulation.actors.town import Town
from tests.simulation.jetstream.stream import Stored
from tests.simulation.mesh.faults import Faults
from tests.simulation.mesh.processes import Mesh

SETTLED_S = 20.0
"""Calm after a fault before a bound on a delay counts, seconds: a restart, a reconnect and a retry fit into it."""


class Failure(NamedTuple):
    """A broken invariant."""

    judge: str
    """Name of the invariant, such as I2."""
    at_s: float
    """Time since the world's start, seconds."""
    text: str

    def __str__(self) -> str:
        return f"{self.judge} at {self.at_s:.3f} s: {self.text}"


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that judges may look at."""

    mesh: Mesh
    faults: Faults
    town: Town
    head_end: HeadEnd
    desks: dict[str, Desk]
    fail: Callable[[Failure], None]


class Judge:
    """A judge of one invariant. It sees what happens and reports what mustn't be."""

    name = ""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = case.mesh.world

    def stored(self, stream: str, message: Stored) -> None:
        """A stream has stored a message."""

    def torn(self, stream: str, first_lost: int) -> None:
        """A stream has lost its messages from a sequence on."""

    def each_second(self) -> None:
        """A second of the world has passed."""

    def finish(self) -> None:
        """The simulation is over, after a time without faults."""

    def fail(self, text: str) -> None:
        """Reports that the invariant is broken, or another one that the text begins with, such as "I6: "."""
        other = re.match(r"(I\d+): ", text)
        name, text = (other[1], text[other.end() :]) if other else (self.name, text)
        self.case.fail(Failure(name, self.world.elapsed_s, text))
