"""Several askers of one device: the smallest interval is in effect, nobody ends another's ask, and one command is sent for each change.

The simulated processes read one stream of commands, as ingest processes do, each with its own clock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from services.ingest.commands import asks
from services.ingest.commands.asks import FOLD, HELD, OUTDATED, REFUSED_BEFORE
from services.ingest.commands.states import Intervals, remaining
from tandem.common.v1 import command_pb2

START_MS = 1_780_000_000_000
TAG = "tag"
SEOUL = "spiffe://moj/desk/seoul"
BUSAN = "spiffe://moj/desk/busan"
POLICE = "spiffe://npa/desk/seoul"
PROBATION = "spiffe://tandem/service/dispatch-probation"


def every(
    command_id: str, interval_s: int, for_s: int, at_s: float, *, by: str = FOLD, reference: str = ""
) -> command_pb2.Command:
    """A command with which somebody asks for an interval."""
    return command_pb2.Command(
        command_id=command_id,
        device_id=TAG,
        instruction=command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=interval_s, for_s=for_s)),
        issued_at_ms=START_MS + round(at_s * 1000),
        expires_at_ms=START_MS + round(at_s * 1000) + (for_s or 86_400) * 1000,
        issued_by=by,
        reference=reference,
    )


def as_usual(command_id: str, at_s: float, *, by: str, reference: str = "") -> command_pb2.Command:
    """A command with which somebody withdraws its interval."""
    command = every(command_id, 1, 3_600, at_s, by=by, reference=reference)
    command.instruction.report_as_usual.SetInParent()
    return command


@dataclass
class Device:
    """A tag that follows its commands, and goes back to its usual interval by itself."""

    interval_s: int | None = None
    until_ms: int = 0

    def receive(self, command: command_pb2.Command, now_ms: int) -> None:
        instruction = remaining(command, now_ms)
        if instruction.HasField("report_as_usual"):
            self.interval_s = None
        else:
            self.interval_s = instruction.report_every.interval_s
            self.until_ms = now_ms + instruction.report_every.for_s * 1000

    def interval_at(self, now_ms: int) -> int | None:
        return self.interval_s if now_ms < self.until_ms else None


@dataclass
class Processes:
    """Ingest processes on one stream, and the tag that gets what they send."""

    skews_ms: tuple[int, ...] = (0,)
    now_ms: int = START_MS
    stream: list[command_pb2.Command] = field(default_factory=list)
    sent: list[command_pb2.Command] = field(default_factory=list)
    device: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        self.processes = [Intervals() for _ in self.skews_ms]

    def publish(self, command: command_pb2.Command) -> str:
        """Stores a command, unless one with its id is stored. Returns why it isn't sent, or an empty text."""
        if any(known.command_id == command.command_id for known in self.stream):
            return "stored already"
        self.stream.append(command)
        (reason,) = {process.add(command) for process in self.processes}
        if not reason:
            self.sent.append(command)
            self.device.receive(command, self.now_ms)
        return reason

    def restart(self, number: int) -> None:
        """Replaces a process by a new one, which reads the stream from its start."""
        self.processes[number] = Intervals()
        for command in self.stream:
            self.processes[number].add(command)

    def pass_to(self, at_s: float) -> None:
        """Passes time, with a check of each process in each second."""
        until_ms = START_MS + round(at_s * 1000)
        while self.now_ms < until_ms:
            self.now_ms = min(self.now_ms + 1_000, until_ms)
            found = [
                process.corrections(self.now_ms + skew_ms, self.now_ms / 1000)
                for process, skew_ms in zip(self.processes, self.skews_ms, strict=True)
            ]
            for corrections in found:
                for correction in corrections:
                    self.publish(correction)

    @property
    def instructed(self) -> list[tuple[str, int]]:
        """Kind of each command that was sent, with its interval."""
        return [
            (command.instruction.WhichOneof("kind") or "", command.instruction.report_every.interval_s)
            for command in self.sent
        ]


def test_a_desk_lengthens_nothing_that_the_decision_needs_and_gets_its_interval_afterwards() -> None:
    mesh = Processes()
    assert mesh.publish(every("fold-1", 60, 600, 0)) == ""
    assert mesh.publish(every("desk-1", 300, 3_600, 10, by=SEOUL)) == HELD
    mesh.pass_to(590)
    assert mesh.instructed == [("report_every", 60)]
    mesh.pass_to(605)
    assert mesh.instructed == [("report_every", 60), ("report_every", 300)]
    assert mesh.sent[-1].issued_by == SEOUL and mesh.sent[-1].ask_id == "desk-1"
    assert mesh.sent[-1].instruction.report_every.for_s == pytest.approx(3_010, abs=3)
    mesh.pass_to(3_620)
    assert mesh.instructed[2:] == [("report_as_usual", 0)]


def test_a_smaller_interval_is_sent_at_once_and_the_larger_one_returns_when_it_is_withdrawn() -> None:
    mesh = Processes()
    mesh.publish(every("fold-1", 120, 3_600, 0))
    assert mesh.publish(every("pursuit-1", 15, 300, 5, by=PROBATION, reference="incident-1")) == ""
    assert mesh.publish(as_usual("pursuit-2", 60, by=PROBATION, reference="incident-1")) == HELD
    mesh.pass_to(62)
    assert mesh.instructed == [("report_every", 120), ("report_every", 15), ("report_every", 120)]


def test_nobody_withdraws_anothers_ask() -> None:
    mesh = Processes()
    mesh.publish(every("a", 60, 3_600, 0))
    mesh.publish(every("b", 15, 300, 1, by=PROBATION, reference="incident-1"))
    mesh.publish(every("c", 15, 310, 2, by=PROBATION, reference="incident-2"))
    for number, by in enumerate((SEOUL, POLICE)):
        assert mesh.publish(as_usual(f"usual-{number}", 3, by=by)) == HELD
    assert mesh.publish(as_usual("usual-2", 4, by=PROBATION, reference="incident-1")) == HELD
    mesh.pass_to(100)
    assert mesh.device.interval_at(mesh.now_ms) == 15, "the other incident's pursuit goes on"
    mesh.publish(as_usual("usual-3", 100, by=PROBATION, reference="incident-2"))
    mesh.pass_to(110)
    assert mesh.device.interval_at(mesh.now_ms) == 60


def test_all_desks_of_an_agency_are_one_asker() -> None:
    mesh = Processes()
    mesh.publish(every("a", 15, 3_600, 0, by=SEOUL))
    assert mesh.publish(every("b", 300, 3_600, 1, by=BUSAN)) == ""
    assert mesh.publish(as_usual("c", 2, by=SEOUL)) == ""
    assert mesh.instructed == [("report_every", 15), ("report_every", 300), ("report_as_usual", 0)]


def test_a_newer_interval_of_the_decision_replaces_the_older_one_in_whatever_order_they_are_stored() -> None:
    mesh = Processes()
    mesh.publish(every("second", 150, 3_600, 10))
    assert mesh.publish(every("first", 30, 3_600, 0)) == OUTDATED
    mesh.pass_to(60)
    assert mesh.instructed == [("report_every", 150)]


def test_a_refused_interval_is_not_resent_within_the_hour_and_the_next_larger_one_is_sent() -> None:
    mesh = Processes()
    mesh.publish(every("desk", 60, 7_200, 0, by=SEOUL))
    fold = every("fold-1", 30, 3_600, 10)
    mesh.publish(fold)
    for process in mesh.processes:
        process.refused(fold, START_MS + 12_000, "at least 40 s")
    mesh.pass_to(20)
    assert mesh.instructed == [("report_every", 60), ("report_every", 30), ("report_every", 60)]
    assert mesh.publish(every("fold-2", 30, 3_600, 1_800)) == REFUSED_BEFORE
    mesh.pass_to(1_900)
    assert len(mesh.instructed) == 3
    mesh.pass_to(3_640)  # an hour after the refusal: the ask is still in force, so it is tried again
    assert mesh.instructed[3:] == [("report_every", 30)]


def test_a_device_that_refused_all_that_is_asked_keeps_what_it_has() -> None:
    mesh = Processes()
    mesh.publish(every("fold-1", 60, 3_600, 0))
    second = every("fold-2", 30, 3_600, 100)
    mesh.publish(second)
    mesh.processes[0].refused(second, START_MS + 101_000, "too often")
    mesh.pass_to(1_000)
    assert mesh.instructed == [("report_every", 60), ("report_every", 30)]


def test_an_ask_whose_command_expired_unsent_ends() -> None:
    mesh = Processes()
    command = every("desk", 60, 3_600, 0, by=SEOUL)
    mesh.publish(command)
    mesh.processes[0].expired_unsent(command)
    mesh.pass_to(5)
    assert mesh.instructed == [("report_every", 60), ("report_as_usual", 0)]


def test_an_interval_without_an_end_is_sent_with_the_rest_of_a_day() -> None:
    command = every("desk", 60, 0, 0, by=SEOUL)
    assert remaining(command, START_MS).report_every.for_s == 86_400
    assert remaining(command, START_MS + 3_600_000).report_every.for_s == 82_800
    assert command.instruction.report_every.for_s == 0, "the stored command stays as it was given"


def test_a_clock_that_is_set_back_lengthens_no_ask() -> None:
    assert remaining(every("fold", 60, 600, 0), START_MS - 3_600_000).report_every.for_s == 600


def test_a_clock_that_steps_forward_and_back_ends_with_the_interval_that_is_asked() -> None:
    mesh = Processes()
    mesh.publish(every("fold", 60, 3_600, 0))
    mesh.pass_to(10)
    mesh.skews_ms = (7_200_000,)
    mesh.pass_to(20)
    assert mesh.instructed == [("report_every", 60), ("report_as_usual", 0)], "by this clock the ask is over"
    mesh.skews_ms = (0,)
    mesh.pass_to(60)
    assert mesh.instructed[2:] == [("report_every", 60)]
    assert mesh.device.interval_at(mesh.now_ms) == 60


@pytest.mark.parametrize("skews_ms", [(0, 0), (0, 4_000), (-4_000, 0)])
def test_two_processes_send_one_command_for_each_change(skews_ms: tuple[int, ...]) -> None:
    mesh = Processes(skews_ms)
    mesh.publish(every("fold", 60, 120, 0))
    mesh.publish(every("desk", 300, 240, 1, by=SEOUL))
    mesh.pass_to(400)
    assert mesh.instructed == [("report_every", 60), ("report_every", 300), ("report_as_usual", 0)]


def test_two_processes_with_clocks_an_hour_apart_do_not_flood_the_device() -> None:
    mesh = Processes((0, 3_600_000))
    mesh.publish(every("fold", 60, 1_800, 0))
    mesh.pass_to(60)
    assert len(mesh.sent) <= 1 + 2 * 60 / 5


@pytest.mark.parametrize("seed", range(40))
def test_all_processes_agree_on_any_asks_and_the_device_keeps_the_smallest_interval(seed: int) -> None:
    draw = random.Random(seed)
    mesh = Processes((0, draw.randrange(-2_000, 2_000)))
    now_s = 0.0
    for number in range(40):
        now_s += draw.choice((0.3, 2.0, 20.0, 90.0))
        mesh.pass_to(now_s)
        by, reference = draw.choice(
            [(FOLD, ""), (SEOUL, ""), (BUSAN, ""), (POLICE, ""), (PROBATION, "i-1"), (PROBATION, "i-2")]
        )
        if by != FOLD and draw.random() < 0.3:
            mesh.publish(as_usual(f"c-{number}", now_s, by=by, reference=reference))
        else:
            for_s = draw.choice((60, 300, 3_600))
            mesh.publish(every(f"c-{number}", draw.choice((15, 30, 60, 600)), for_s, now_s, by=by, reference=reference))
        if draw.random() < 0.2:
            mesh.restart(draw.randrange(2))
    now_s += asks.CLOCK_TOLERANCE_MS / 1000 + 10
    mesh.pass_to(now_s)
    first, second = (process.of_device(TAG) for process in mesh.processes)
    assert first.current == second.current
    in_effect = first.in_effect(mesh.now_ms)
    if in_effect is None or in_effect.until_ms - mesh.now_ms > 15_000:
        assert mesh.device.interval_at(mesh.now_ms) == (in_effect and in_effect.interval_s)
    ids = [command.command_id for command in mesh.sent]
    assert len(ids) == len(set(ids))
