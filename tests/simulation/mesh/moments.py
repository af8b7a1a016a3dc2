"""Faults at the moments that matter: they wait for a decision, an alert, a step, a record or a disclosure, and strike just after it.

A crash at a random time nearly never falls into the milliseconds between an effect and its record. These faults do.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from random import Random
from typing import NamedTuple

from tests.simulation.jetstream.server import SERVER
from tests.simulation.mesh.processes import EVALUATORS, LEGS, Mesh

WAITS_S = 150.0
"""Maximum time for which a fault waits for its moment, seconds."""
RESTARTED_S = 10.0
"""Duration of a crash with its restart, seconds."""


class Moment(StrEnum):
    """A moment that a fault can wait for."""

    DECISION = "a decision"
    """An entry of the log gives alerts that no evaluator has published yet."""
    CHECKPOINTS = "checkpoints after a decision"
    """Both evaluators have written a checkpoint since the last decision."""
    ALERT = "an alert"
    """ALERTS has stored an alert."""
    STEP = "a step"
    """INCIDENTS has stored a step."""
    RECORD = "a record"
    """The registry has answered to an agency's record."""
    DISCLOSURE = "a disclosure"
    """DISCLOSURES has stored a disclosure."""


class Strike(NamedTuple):
    """What happens at a moment."""

    moment: Moment
    text: str
    delay_s: float
    """Time from the moment to the strike, seconds."""
    make: Callable[[], float]
    """Begins the fault and returns how long it lasts, seconds."""


class DirectedFaults:
    """Draws strikes from the seed. `Faults` makes them when their moment comes."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._world = mesh, mesh.world
        self._kinds: tuple[Callable[[Random], Strike], ...] = (
            self._evaluators_crash,
            self._evaluators_crash_at_their_checkpoints,
            self._server_crashes,
            self._leg_crashes_at_once,
            self._leg_crashes_later,
            self._leg_is_cut_off,
            self._leg_is_cut_off_and_crashes,
            self._registry_crashes,
            self._registry_is_cut_off,
            self._ledger_crashes,
        )

    def drawn(self, random: Random) -> Strike:
        """A strike of the seed."""
        return random.choice(self._kinds)(random)

    def _crash(self, *names: str) -> float:
        for name in names:
            self._mesh.processes[name].crash()
        return RESTARTED_S

    def _cut(self, name: str, seconds: float) -> float:
        self._mesh.network.cut(name, SERVER)
        self._world.after(seconds, partial(self._mesh.network.heal, name, SERVER))
        return seconds

    # ── kinds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluators_crash(self, random: Random) -> Strike:
        return Strike(
            Moment.DECISION, "both evaluators crash", random.uniform(0.0, 6.0), partial(self._crash, *EVALUATORS)
        )

    def _evaluators_crash_at_their_checkpoints(self, random: Random) -> Strike:
        delay_s = random.uniform(0.0, 0.05)
        return Strike(Moment.CHECKPOINTS, "both evaluators crash", delay_s, partial(self._crash, *EVALUATORS))

    def _server_crashes(self, random: Random) -> Strike:
        down_s = random.uniform(0.2, 6.0)

        def make() -> float:
            if self._mesh.server.is_up:
                self._mesh.server.kill()
                self._world.after(down_s, self._mesh.server.restart)
            return down_s

        moment = random.choice((Moment.DECISION, Moment.ALERT, Moment.STEP))
        return Strike(moment, "the server crashes", random.choice((0.001, 0.01, 0.1)) * random.random(), make)

    def _leg_crashes_at_once(self, random: Random) -> Strike:
        leg = random.choice(LEGS)
        return Strike(Moment.ALERT, f"{leg} crashes", random.uniform(0.0, 0.08), partial(self._crash, leg))

    def _leg_crashes_later(self, random: Random) -> Strike:
        leg = random.choice(LEGS[:2])
        return Strike(Moment.STEP, f"{leg} crashes", random.uniform(0.0, 25.0), partial(self._crash, leg))

    def _leg_is_cut_off(self, random: Random) -> Strike:
        legs, seconds = random.choice((LEGS, *((leg,) for leg in LEGS))), random.uniform(3.5, 40.0)
        moment = random.choice((Moment.ALERT, Moment.STEP))
        delay_s = random.choice((0.004, 0.02, 1.5)) * random.random()

        def make() -> float:
            return max(self._cut(leg, seconds) for leg in legs)

        return Strike(moment, f"{', '.join(legs)} cut off from the server for {seconds:.1f} s", delay_s, make)

    def _leg_is_cut_off_and_crashes(self, random: Random) -> Strike:
        leg, seconds, crash_s = random.choice(LEGS[:2]), random.uniform(20.0, 50.0), random.uniform(3.0, 20.0)

        def make() -> float:
            self._world.after(crash_s, self._mesh.processes[leg].crash)
            return self._cut(leg, seconds)

        text = f"{leg} is cut off from the server for {seconds:.1f} s, and crashes after {crash_s:.1f} s"
        return Strike(Moment.STEP, text, random.uniform(0.0, 1.0), make)

    def _registry_crashes(self, random: Random) -> Strike:
        return Strike(Moment.RECORD, "the registry crashes", random.uniform(0.0, 0.1), partial(self._crash, "registry"))

    def _registry_is_cut_off(self, random: Random) -> Strike:
        seconds = random.uniform(3.5, 40.0)
        text = f"the registry is cut off from the server for {seconds:.1f} s"
        return Strike(Moment.RECORD, text, random.uniform(0.0, 0.005), partial(self._cut, "registry", seconds))

    def _ledger_crashes(self, random: Random) -> Strike:
        delay_s = random.choice((0.002, 0.02, 0.5)) * random.random()
        return Strike(Moment.DISCLOSURE, "the registry crashes", delay_s, partial(self._crash, "registry"))
