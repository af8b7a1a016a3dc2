"""Faults at the moments that matter: they wait for a decision, an offer, a record or an acknowledgement, and strike just after it.

A crash at a random time nearly never falls into the milliseconds between an effect and its record. These faults do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from random import Random
from typing import NamedTuple

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.jetstream.server import SERVER
from tests.simulation.mesh.processes import EVALUATORS, LEGS, Mesh

WAITS_S = 300.0
"""Maximum time for which a fault waits for its moment, seconds."""
RESTARTED_S = 10.0
"""Duration of a crash with its restart, seconds."""
RESTS_S = 75.0
"""Time without another fault after a strike whose harm shows only at a deadline, seconds: a desk's deadline and the calm before it."""
ABSENT_SHARE = 0.7
"""Share of the crashes before a deadline after which nobody is at the desk until the deadline has passed."""
DESK_LEGS = LEGS[:2]
"""Processes of the legs that make offers to desks."""


class Moment(StrEnum):
    """A moment that a fault can wait for."""

    DECISION = "a decision"
    """An entry of the log gives alerts that no evaluator has published yet."""
    CHECKPOINTS = "checkpoints after a decision"
    """Both evaluators have written a checkpoint since the last decision."""
    ALERT = "an alert"
    """ALERTS has stored an alert."""
    DEMAND = "an alert that demands a response"
    """ALERTS has stored an alert that demands a response."""
    STEP = "a step"
    """INCIDENTS has stored a step."""
    OFFER = "an offer"
    """INCIDENTS has stored an offer of the leg that the fault is about."""
    WARNING = "a warning"
    """The warning leg has written a message to a protected person and is about to send it."""
    RECORD = "a record"
    """The registry has answered to an agency's record."""
    DISCLOSURE = "a disclosure"
    """DISCLOSURES has stored a disclosure."""
    ACKNOWLEDGEMENT = "an acknowledgement"
    """The server has got the acknowledgement of a message that a durable consumer delivered."""


def moments_of(stream: str, content: bytes) -> Iterator[tuple[Moment, str]]:
    """Moments that come when a stream stores a message, each with the process that it concerns; empty if it concerns none."""
    if stream == flow.ALERTS.name:
        yield Moment.ALERT, ""
        if alert_pb2.Alert.FromString(content).demand >= geometry_pb2.RESPOND:
            yield Moment.DEMAND, ""
    elif stream == flow.INCIDENTS.name:
        yield Moment.STEP, ""
        assignment = dispatch_pb2.Step.FromString(content).assignment
        if assignment.state == dispatch_pb2.OFFERED:
            yield Moment.OFFER, f"dispatch-{alert_pb2.Leg.Name(assignment.leg).lower()}"
    elif stream == flow.DISCLOSURES.name:
        yield Moment.DISCLOSURE, ""


class Strike(NamedTuple):
    """What happens at a moment."""

    moment: Moment
    text: str
    delay_s: float
    """Time from the moment to the strike, seconds."""
    make: Callable[[], float]
    """Begins the fault and returns how long it lasts, seconds."""
    process: str = ""
    """Process that the moment must concern. Empty, the default, for any."""
    rests_s: float = 0.0
    """Time after the strike in which no other fault begins, seconds, so that bounds on a delay count."""


class DirectedFaults:
    """Draws strikes from the seed. `Faults` makes them when their moment comes."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._world = mesh, mesh.world
        self.on_absence: Callable[[str, float], None] = lambda _leg, _seconds: None
        """Called with a leg in whose control room nobody answers from now on, and for how long, seconds."""
        self._kinds: tuple[Callable[[Random], Strike], ...] = (
            self._evaluators_crash,
            self._evaluators_crash_at_their_checkpoints,
            self._server_crashes,
            self._server_crashes_at_a_decision,
            self._leg_crashes_at_once,
            self._leg_crashes_before_a_deadline,
            self._leg_is_cut_off,
            self._leg_is_cut_off_and_crashes,
            self._warnings_are_cut_off,
            self._registry_crashes,
            self._registry_is_cut_off,
            self._ledger_crashes,
            self._ledger_crashes_at_its_acknowledgement,
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

    def _crash_server(self, down_s: float) -> float:
        if self._mesh.server.is_up:
            self._mesh.server.kill()
            self._world.after(down_s, self._mesh.server.restart)
        return down_s

    # ── kinds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluators_crash(self, random: Random) -> Strike:
        return Strike(
            Moment.DECISION, "both evaluators crash", random.uniform(0.0, 6.0), partial(self._crash, *EVALUATORS)
        )

    def _evaluators_crash_at_their_checkpoints(self, random: Random) -> Strike:
        delay_s = random.uniform(0.0, 0.05)
        return Strike(Moment.CHECKPOINTS, "both evaluators crash", delay_s, partial(self._crash, *EVALUATORS))

    def _server_crashes(self, random: Random) -> Strike:
        make = partial(self._crash_server, random.uniform(0.2, 6.0))
        moment = random.choice((Moment.DECISION, Moment.ALERT, Moment.STEP))
        return Strike(moment, "the server crashes", random.choice((0.001, 0.01, 0.1)) * random.random(), make)

    def _server_crashes_at_a_decision(self, random: Random) -> Strike:
        # By then the evaluators have the entry, and their alerts are on the way.
        make = partial(self._crash_server, random.uniform(3.5, 6.0))
        return Strike(Moment.DECISION, "the server crashes", random.uniform(0.000_3, 0.003), make)

    def _leg_crashes_at_once(self, random: Random) -> Strike:
        leg = random.choice(LEGS)
        moment = random.choice((Moment.ALERT, Moment.DEMAND))
        return Strike(moment, f"{leg} crashes", random.uniform(0.0, 0.06), partial(self._crash, leg))

    def _leg_crashes_before_a_deadline(self, random: Random) -> Strike:
        # Only if nobody answers, the deadline must survive the crash.
        process = random.choice(DESK_LEGS)
        delay_s = random.uniform(0.0, 25.0)
        is_left = random.random() < ABSENT_SHARE

        def make() -> float:
            if is_left:
                self.on_absence(process.removeprefix("dispatch-"), RESTS_S)
            return self._crash(process)

        text = f"{process} crashes{', and nobody is at its desk' if is_left else ''}"
        return Strike(Moment.OFFER, text, delay_s, make, process=process, rests_s=RESTS_S)

    def _leg_is_cut_off(self, random: Random) -> Strike:
        legs, seconds = random.choice((LEGS, *((leg,) for leg in LEGS))), random.uniform(3.5, 40.0)
        moment = random.choice((Moment.ALERT, Moment.STEP))
        delay_s = random.choice((0.004, 0.02, 1.5)) * random.random()

        def make() -> float:
            return max(self._cut(leg, seconds) for leg in legs)

        return Strike(moment, f"{', '.join(legs)} cut off from the server for {seconds:.1f} s", delay_s, make)

    def _leg_is_cut_off_and_crashes(self, random: Random) -> Strike:
        leg = random.choice(DESK_LEGS)
        seconds = random.uniform(20.0, 50.0)
        crash_s = random.uniform(3.0, 20.0)

        def make() -> float:
            self._world.after(crash_s, self._mesh.processes[leg].crash)
            return self._cut(leg, seconds)

        text = f"{leg} is cut off from the server for {seconds:.1f} s, and crashes after {crash_s:.1f} s"
        return Strike(Moment.STEP, text, random.uniform(0.0, 1.0), make)

    def _warnings_are_cut_off(self, random: Random) -> Strike:
        seconds, delay_s = random.uniform(3.5, 20.0), random.uniform(0.0, 0.003)
        text = f"the warning leg is cut off from the server for {seconds:.1f} s"
        return Strike(Moment.WARNING, text, delay_s, partial(self._cut, "dispatch-warning", seconds))

    def _registry_crashes(self, random: Random) -> Strike:
        return Strike(Moment.RECORD, "the registry crashes", random.uniform(0.0, 0.1), partial(self._crash, "registry"))

    def _registry_is_cut_off(self, random: Random) -> Strike:
        seconds = random.uniform(3.5, 40.0)
        text = f"the registry is cut off from the server for {seconds:.1f} s"
        return Strike(Moment.RECORD, text, random.uniform(0.0, 0.005), partial(self._cut, "registry", seconds))

    def _ledger_crashes(self, random: Random) -> Strike:
        delay_s = random.choice((0.002, 0.02, 0.5)) * random.random()
        return Strike(Moment.DISCLOSURE, "the registry crashes", delay_s, partial(self._crash, "registry"))

    def _ledger_crashes_at_its_acknowledgement(self, random: Random) -> Strike:
        delay_s = random.choice((0.0, 0.001)) * random.random()
        return Strike(Moment.ACKNOWLEDGEMENT, "the registry crashes", delay_s, partial(self._crash, "registry"))
