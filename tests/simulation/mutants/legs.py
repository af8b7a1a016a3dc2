"""Defects of the legs: cursors, deadlines, answers, desks and warnings."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import services.dispatch.__main__ as dispatch
from services.dispatch.domain import answers, decisions, escalation
from services.dispatch.domain import assignment as assignments
from services.dispatch.domain.answers import Acknowledge
from services.dispatch.domain.assignment import Assignment, AssignmentState
from services.dispatch.domain.events import UnitOfferEnded
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import consumer
from services.dispatch.leg.deadlines import DeadlineWatch, Pulse
from services.dispatch.leg.feed import Subscriptions
from services.dispatch.leg.publications import StepOutbox
from services.dispatch.leg.service import LegService
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import ListedIncident
from services.dispatch.warning.channels import DeviceChannel
from services.dispatch.warning.opening import MessageOpener
from tests.simulation.mutants.replacing import replace

WAIT_S = 60.0
_UNANSWERED = (AssignmentState.OFFERED, AssignmentState.ESCALATED)


def a_leg_moves_its_cursor_before_the_effect() -> None:
    """A crash between two transactions loses alerts."""
    plain = LegService.fold

    async def fold(self: LegService, alerts: Sequence[Any], position: Any) -> None:
        await plain(self, (), position)
        await asyncio.sleep(0.05)
        await plain(self, alerts, position)

    replace(LegService, "fold", fold)


def deadlines_are_in_minutes() -> None:
    """A deadline has the wrong unit."""
    plain = escalation.first

    def first(*arguments: Any, **options: Any) -> escalation.FirstOffer:
        offer = plain(*arguments, **options)
        situation = options["situation"]
        return dataclasses.replace(offer, due_ms=situation.now_ms + 60 * (offer.due_ms - situation.now_ms))

    replace(escalation, "first", first)


def a_leg_forgets_its_deadlines_at_a_restart() -> None:
    """Deadlines are only in memory."""
    plain = DeadlineWatch.pulse
    announced: WeakSet[DeadlineWatch] = WeakSet()

    async def pulse(self: DeadlineWatch) -> Pulse:
        found = await plain(self)
        return found if self in announced else dataclasses.replace(found, due_ms=math.inf)

    def due(self: DeadlineWatch, due_ms: float, leg_due_ms: float) -> None:
        if due_ms < math.inf:
            announced.add(self)
        plain_due(self, due_ms, leg_due_ms)

    plain_due = DeadlineWatch.due
    replace(DeadlineWatch, "pulse", pulse)
    replace(DeadlineWatch, "due", due)


def deadlines_wake_nobody() -> None:
    """A leg looks at its deadlines only once, at its start."""

    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    replace(DeadlineWatch, "_wait", wait)


def the_end_of_an_incident_is_passed_over() -> None:
    """A leg doesn't stand down."""
    plain = decisions.concerns

    def concerns(leg: Leg, alert: Any) -> bool:
        return plain(leg, alert) and not alert.ends

    for module in (decisions, consumer):
        replace(module, "concerns", concerns)


def answers_of_a_desk_are_dropped() -> None:
    """A desk's acknowledgement gets an answer and no event."""
    plain = answers.decide

    def decide(incident: Any, command: Any, situation: Any) -> Any:
        return () if isinstance(command, Acknowledge) else plain(incident, command, situation)

    replace(answers, "decide", decide)


def only_the_first_destination_is_asked() -> None:
    """An alert of two destinations leads to one assignment."""
    plain = LegService.fold

    async def fold(self: LegService, alerts: Sequence[Any], position: Any) -> None:
        await plain(self, [dataclasses.replace(a, subject_ids=a.subject_ids[:1]) for a in alerts], position)

    replace(LegService, "fold", fold)


def an_escalation_ends_an_assignment() -> None:
    """An offer that nobody answered is closed."""
    plain = escalation.decide

    def decide(incident: Any, command: Any, situation: Any) -> Iterator[Any]:
        assignment: Assignment | None = incident.assignments.get(command.assignment_id)
        if assignment is None or assignment.state.name != "OFFERED":
            yield from plain(incident, command, situation)

    replace(escalation, "decide", decide)


def an_offer_to_a_unit_never_ends() -> None:
    """A unit that gave no answer stays asked for ever."""
    plain = escalation.decide

    def decide(incident: Any, command: Any, situation: Any) -> Iterator[Any]:
        yield from (event for event in plain(incident, command, situation) if not isinstance(event, UnitOfferEnded))

    replace(escalation, "decide", decide)


def an_acceptance_leaves_the_other_units_asked() -> None:
    """Two units believe that the assignment is theirs."""
    replace(assignments, "_ended", lambda offers, _but=0: offers)


def desks_get_no_steps() -> None:
    """A leg doesn't send its steps to the desks that subscribe."""
    replace(Subscriptions, "notify", lambda _self, _steps: None)


def a_leg_does_not_read_the_other_legs() -> None:
    """The steps of the other legs are never seen."""

    async def consume(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    for module in (dispatch, consumer):
        replace(module, "consume_peers", consume)


def unpublished_steps_are_forgotten_at_a_restart() -> None:
    """The outbox is only in memory."""
    plain = StepOutbox.__init__

    def init(self: StepOutbox, leg: Leg, _: Any, metrics: Any) -> None:
        plain(self, leg, (), metrics)

    replace(StepOutbox, "__init__", init)


def a_warning_waits_for_a_minute() -> None:
    """Warnings are sent when there is time."""
    plain = MessageOpener.open

    async def open_later(self: MessageOpener, due: Sequence[Any], contacts: Mapping[str, Sequence[Any]]) -> Any:
        await asyncio.sleep(WAIT_S)
        return await plain(self, due, contacts)

    replace(MessageOpener, "open", open_later)


def a_warning_goes_to_another_device() -> None:
    """A warning has the device of another person."""
    plain = DeviceChannel.hand_over

    async def hand_over(self: DeviceChannel, sending: Any, message: Any) -> str:
        return await plain(
            self, dataclasses.replace(sending, channel=sending.channel._replace(name="phone-99")), message
        )

    replace(DeviceChannel, "hand_over", hand_over)


def a_failed_warning_ends_all_warnings() -> None:
    """A failed attempt to hand a message over ends all later ones, as if the channel were closed."""
    plain = DeviceChannel.hand_over
    failed: list[str] = []

    async def hand_over(self: DeviceChannel, sending: Any, message: Any) -> str:
        if failed:
            return "the channel has failed before"
        reason = await plain(self, sending, message)
        if reason:
            failed.append(reason)
        return reason

    replace(DeviceChannel, "hand_over", hand_over)


def a_list_leaves_out_acknowledged_incidents() -> None:
    """The list of open incidents has only those with an offer that nobody has acknowledged."""
    plain = Store.incidents

    async def incidents(self: Store, *arguments: Any, only_open: bool = False) -> list[ListedIncident]:
        found = await plain(self, *arguments, only_open=only_open)
        return [
            incident for incident in found if not only_open or any(row.state in _UNANSWERED for row in incident.own)
        ]

    replace(Store, "incidents", incidents)


def a_page_of_a_list_skips_an_incident() -> None:
    """The second page of a list begins after its first incident."""
    plain = Store.incidents

    async def incidents(
        self: Store, incident_id: str, limit: int, before: str, *, only_open: bool = False
    ) -> list[ListedIncident]:
        found = await plain(self, incident_id, limit + bool(before), before, only_open=only_open)
        return found[1:] if before else found

    replace(Store, "incidents", incidents)


def lost_steps_are_not_republished() -> None:
    """A comparison with the stream finds lost steps and does nothing."""
    plain = StepOutbox.add

    def add(self: StepOutbox, steps: Any, republished: bool = False) -> None:
        if not republished:
            plain(self, steps)

    replace(StepOutbox, "add", add)


def alerts_that_were_missed_are_not_found() -> None:
    """The comparison of a leg with ALERTS finds nothing."""

    async def reconcile(*_: object) -> list[Any]:
        return []

    replace(LegService, "reconcile", reconcile)
