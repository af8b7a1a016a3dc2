"""The judges bite: each finds a defect that is put into the services. `make mutants` does the same for all known defects."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.messaging import flow
from services.dispatch.warning.channels import ISSUED_BY
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Output
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import alert_pb2, command_pb2, log_pb2
from tests.simulation.actors.head_end import HeadEnd, Notice
from tests.simulation.actors.town import Journey, Town, Waypoint
from tests.simulation.command_line import simulate
from tests.simulation.jetstream.stream import MemoryStream, Stored
from tests.simulation.judges import fold as judges_of_folds
from tests.simulation.judges.account import AccountJudge, ClearingJudge
from tests.simulation.judges.fold import FoldJudge
from tests.simulation.judges.judge import Case, Failure
from tests.simulation.judges.reports import OverloadJudge, ReportsJudge
from tests.simulation.judges.warned import WarningJudge
from tests.simulation.kernel.journal import Journal
from tests.simulation.kernel.world import SECOND_NS, START_NS, World
from tests.simulation.mesh.faults import Faults
from tests.simulation.mesh.processes import Mesh
from tests.simulation.mutants import HARMLESS, MUTANTS
from tests.simulation.run import ends_of_actors

HOURS = "0.34"


class Finding(NamedTuple):
    """How a defect is found."""

    mutant: str
    seed: int
    judge: str
    """The invariant that it breaks first in this seed."""


FINDINGS = (
    Finding("the_last_report_of_a_batch_is_lost", 0, "I1"),
    Finding("an_evaluator_folds_no_equipment_events", 0, "I2"),
    Finding("deadlines_never_pass", 1, "I3"),
    Finding("a_leg_makes_an_assignment_for_each_try", 1, "I4"),
    Finding("an_evaluator_folds_no_later_snapshots_of_a_case", 1, "I5"),
    Finding("a_leg_does_not_read_the_other_legs", 0, "I6"),
    Finding("the_registry_publishes_no_cases", 0, "I7"),
    Finding("the_ledger_drops_disclosures", 0, "I8"),
    Finding("late_reports_change_no_account", 3, "I9"),
    Finding("a_message_in_twenty_is_forgotten", 0, "I11"),
    Finding("commands_do_not_reach_devices", 0, "warned"),
)
_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \d+ \| ", re.MULTILINE)


@pytest.mark.timeout(900)
def test_each_judge_finds_a_defect() -> None:
    options = [option for finding in FINDINGS for option in ("--mutant", f"{finding.mutant}:{finding.seed}")]
    done = simulate("--mutants", *options, "--hours", HOURS, "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name.replace(" ", "_"): judge for name, judge in _ROW.findall(done.stdout)}
    assert found == {finding.mutant: finding.judge for finding in FINDINGS}


def test_a_warning_that_counts_as_sent_was_stored(tmp_path: Path) -> None:
    """Nearly always the police are told of such a warning before a bound on its delay has passed."""
    world = World(0)
    mesh, town = Mesh(world, tmp_path, Journal(world)), Town(Random(0), households=1, duration_s=1_000.0)
    failures: list[Failure] = []
    faults = Faults(mesh, duration_s=1_000.0, torn_tails=False)
    judge = WarningJudge(Case(mesh, faults, town, HeadEnd(world, town), desks={}, fail=failures.append))

    def hand_over(warning_id: str) -> None:
        fields = {"message_id": warning_id, "way": "device/phone-0"}
        mesh.journal.add("dispatch-warning", "info", "warning_handed_over", fields)

    shown = command_pb2.Instruction(show_notice=command_pb2.ShowNotice(warning_id="stored"))
    command = command_pb2.Command(device_id="phone-0", instruction=shown).SerializeToString()
    subject = flow.command_subject(ISSUED_BY, "command-1")
    judge.stored(flow.COMMANDS.name, Stored(1, subject, b"", data=command, stored_at_ns=world.now_ns))
    hand_over("stored")
    assert not failures
    hand_over("lost")
    assert [failure.judge for failure in failures] == ["warned"]


class JudgedWarnings:
    """A world without services, with a phone that is always heard, and the judge of its warnings."""

    def __init__(self, folder: Path) -> None:
        self.world = World(0)
        mesh = Mesh(self.world, folder, Journal(self.world))
        mesh.services.clear()  # without services nothing is disturbed
        mesh.server.start()
        town = Town(Random(0), households=1, duration_s=1_000.0)
        phone = town.devices["phone-0"]
        phone.offline_s = []
        phone.silent_s = []
        phone.lies_s = []
        phone.clock_ahead_s = 0.0
        self.head_end = HeadEnd(self.world, town)
        mesh.add_actor("head-end", partial(asyncio.sleep, 1_000.0))  # its own run would open a channel of the machine
        faults = Faults(mesh, duration_s=1_000.0, torn_tails=False)
        self.failures: list[Failure] = []
        self.judge = WarningJudge(Case(mesh, faults, town, self.head_end, desks={}, fail=self.failures.append))

    def store(self, warning_id: str, incident_id: str = "", sequence: int = 1, *, topic: str = "") -> None:
        """Lets COMMANDS store the command for a warning on the phone, by default of a topic of its own."""
        notice = command_pb2.ShowNotice(warning_id=warning_id, topic=topic or warning_id)
        shown = command_pb2.Instruction(show_notice=notice)
        command = command_pb2.Command(device_id="phone-0", instruction=shown, reference=incident_id)
        subject = flow.command_subject(ISSUED_BY, f"command-{warning_id}")
        stored = Stored(sequence, subject, b"", data=command.SerializeToString(), stored_at_ns=self.world.now_ns)
        self.judge.stored(flow.COMMANDS.name, stored)


def test_a_warning_that_has_shown_may_have_its_command_stored_a_second_time(tmp_path: Path) -> None:
    """The leg publishes a command once more if the server has lost it, also if the device has obeyed it already."""
    judged = JudgedWarnings(tmp_path)
    world = judged.world
    head_end = judged.head_end
    judge = judged.judge
    failures = judged.failures
    store = judged.store

    world.run(100.0)
    store("shown")
    head_end.notices.append(Notice("phone-0", "shown", world.elapsed_s))
    judge.each_second()
    store("shown")
    head_end._heard_s["phone-0"] = 110.0
    world.run(200.0)
    judge.each_second()
    assert not failures
    store("unseen")
    head_end._heard_s["phone-0"] = 210.0
    world.run(300.0)
    judge.each_second()
    assert [failure.text for failure in failures] == ["warning unseen doesn't show on phone-0, which was heard since"]


def test_of_the_warnings_of_one_topic_only_the_newest_must_show(tmp_path: Path) -> None:
    judged = JudgedWarnings(tmp_path)
    world = judged.world
    head_end = judged.head_end
    judge = judged.judge
    failures = judged.failures
    store = judged.store

    world.run(100.0)
    store("first", "incident-1", 1, topic="incident-1")
    store("of another topic", "incident-1", 2, topic="incident-2")
    store("newest", "incident-1", 3, topic="incident-1")
    assert set(judge._unshown) == {("of another topic", "phone-0"), ("newest", "phone-0")}
    head_end.notices += [Notice("phone-0", "of another topic", world.elapsed_s)]
    head_end._heard_s["phone-0"] = 110.0
    world.run(200.0)
    judge.each_second()
    assert [failure.text for failure in failures] == ["warning newest doesn't show on phone-0, which was heard since"]


def test_a_later_warning_of_the_incident_covers_one_whose_command_was_lost(tmp_path: Path) -> None:
    """The receipt of the later one acknowledges the assignment. Without a loss the device must show both."""
    judged = JudgedWarnings(tmp_path)
    world = judged.world
    head_end = judged.head_end
    judge = judged.judge
    failures = judged.failures
    store = judged.store

    world.run(100.0)
    store("kept", "incident-2", 1)
    store("lost", "incident-1", 2)
    store("lost of another incident", "incident-3", 3)
    judge.torn(flow.COMMANDS.name, 2)
    store("later", "incident-1", 2)
    store("later of the other", "incident-2", 3)
    head_end.notices += [Notice("phone-0", shown_id, world.elapsed_s) for shown_id in ("later", "later of the other")]
    head_end._heard_s["phone-0"] = 110.0
    judge.each_second()
    assert not failures
    world.run(200.0)
    judge.each_second()
    assert [failure.text for failure in failures] == ["warning kept doesn't show on phone-0, which was heard since"]
    failures.clear()
    del judge._unshown["kept", "phone-0"]
    judge.each_second()
    assert "lost of another incident" in failures[0].text
    assert set(judge._unshown) == {("lost of another incident", "phone-0")}


def test_an_all_clear_by_a_jump_is_found(tmp_path: Path) -> None:
    """I10, without a simulation: nearly always I9 finds the defect first."""
    world = World(0)
    mesh, town = Mesh(world, tmp_path, Journal(world)), Town(Random(0), households=1, duration_s=1_000.0)
    tag = town.devices["tag-0"]
    tag.journey = Journey([Waypoint(0.0, 30.0, 0.0)])
    tag.lies_s = [(100.0, 400.0)]
    tag.clock_ahead_s = 0.0
    failures: list[Failure] = []
    faults = Faults(mesh, duration_s=1_000.0, torn_tails=False)
    judge = ClearingJudge(Case(mesh, faults, town, HeadEnd(world, town), desks={}, fail=failures.append))

    def clear(at_s: int) -> None:
        began_s = START_NS // SECOND_NS
        alert = alert_pb2.Alert(
            kind=alert_pb2.RING_CLEARED,
            wearer_id="wearer-0",
            target_id="home-0",
            ring_m=100.0,
            at=Timestamp(seconds=began_s + at_s),
            decided_at=Timestamp(seconds=began_s + at_s + 20),
        )
        judge.stored(
            flow.ALERTS.name, Stored(1, "alert", b"", data=alert.SerializeToString(), stored_at_ns=world.now_ns)
        )

    clear(500)
    assert not failures  # the tag reports where it is
    clear(200)
    assert [failure.judge for failure in failures] == ["I10"]


def test_an_amended_account_may_wait_for_more_late_reports(tmp_path: Path) -> None:
    """The account of a ring that is cleared already is amended a minute after the first late report that changes it."""
    world = World(0)
    mesh, town = Mesh(world, tmp_path, Journal(world)), Town(Random(0), households=1, duration_s=4_000.0)
    mesh.services.clear()  # without services nothing is disturbed
    mesh.server.start()
    tag = town.devices["tag-0"]
    tag.journey = Journey([Waypoint(0.0, 30.0, 0.0)])
    tag.lies_s = []
    tag.clock_ahead_s = 0.0
    failures: list[Failure] = []
    faults = Faults(mesh, duration_s=4_000.0, torn_tails=False)
    case = Case(mesh, faults, town, HeadEnd(world, town), desks={}, fail=failures.append)
    judge = AccountJudge(case, FoldJudge(case))

    def store(stream: str, subject: str, message: log_pb2.LogEntry | alert_pb2.Alert) -> None:
        content = message.SerializeToString()
        judge.stored(stream, Stored(1, subject, b"", data=content, stored_at_ns=world.now_ns))

    def change(kind: alert_pb2.AlertKind.ValueType, at_s: int) -> None:
        alert = alert_pb2.Alert(kind=kind, wearer_id="wearer-0", target_id="home-0", ring_m=100.0)
        alert.at.FromSeconds(START_NS // SECOND_NS + at_s)
        alert.decided_at.FromNanoseconds(world.now_ns)
        store(flow.ALERTS.name, "alert", alert)

    store(flow.log_stream(0), "log.0.case", log_pb2.LogEntry(case=log_pb2.CaseSnapshot(order_id="order-0")))
    world.run(1_500.0)
    change(alert_pb2.RING_ENTERED, 600)
    change(alert_pb2.RING_CLEARED, 1_000)
    world.run(2_000.0)
    late_ms = [START_NS // 1_000_000 + at_s * 1_000 for at_s in (1_200, 1_260)]
    late = log_pb2.PositionBatch(device_id=["tag-0"] * 2, fix_time_ms=late_ms)
    store(flow.log_stream(0), "log.0.report", log_pb2.LogEntry(positions=late))
    world.run(2_089.0)
    judge.each_second()
    assert not failures
    world.run(2_091.0)
    judge.each_second()
    assert [failure.judge for failure in failures] == ["I9"]


def test_a_device_that_came_back_may_still_deliver_what_it_kept(tmp_path: Path) -> None:
    world = World(0)
    mesh, town = Mesh(world, tmp_path, Journal(world)), Town(Random(0), households=1, duration_s=1_000.0)
    phone = town.devices["phone-0"]
    phone.offline_s = [(100.0, 900.0)]
    phone.silent_s = []
    phone.lies_s = []
    phone.clock_ahead_s = 0.0
    failures: list[Failure] = []
    head_end = HeadEnd(world, town)
    faults = Faults(mesh, duration_s=1_000.0, torn_tails=False)
    judge = ReportsJudge(Case(mesh, faults, town, head_end, desks={}, fail=failures.append))
    world.run(500.0)
    for second in range(500):
        head_end._note(phone, float(second))
    world.run(970.0)  # 70 s after it came back, with 500 reports that take 20 s
    judge.finish()
    assert not failures
    world.run(990.0)
    judge.finish()
    assert [failure.judge for failure in failures] == ["I7"]


def test_a_live_report_waits_with_a_device_that_loses_its_network(tmp_path: Path) -> None:
    world = World(0)
    mesh, town = Mesh(world, tmp_path, Journal(world)), Town(Random(0), households=1, duration_s=1_000.0)
    mesh.services.clear()  # without services nothing is disturbed
    mesh.server.start()
    phone = town.devices["phone-0"]
    phone.offline_s = [(510.0, 700.0)]
    phone.silent_s = []
    phone.lies_s = []
    phone.clock_ahead_s = 0.0
    failures: list[Failure] = []
    head_end = HeadEnd(world, town)
    mesh.add_actor("head-end", partial(asyncio.sleep, 1_000.0))  # it runs, and sends nothing
    faults = Faults(mesh, duration_s=1_000.0, torn_tails=False)
    judge = OverloadJudge(Case(mesh, faults, town, head_end, desks={}, fail=failures.append))
    world.run(400.0)
    head_end._heard_s["phone-0"] = 400.0
    judge.each_second()
    world.run(500.0)
    head_end._note(phone)
    world.run(710.0)
    judge.each_second()
    assert not failures
    world.run(720.0)
    judge.each_second()
    assert [failure.judge for failure in failures] == ["I11"]


def test_each_mutant_says_what_is_wrong() -> None:
    assert len(MUTANTS) >= 40
    assert all(put.__doc__ for put in MUTANTS.values())
    assert HARMLESS.keys() <= MUTANTS.keys()


def test_an_actor_that_ends_by_an_error_is_found(tmp_path: Path) -> None:
    """The supervisor starts it again, so a world with such an actor would look whole."""
    world = World(0)
    mesh = Mesh(world, tmp_path, Journal(world))

    async def stumble() -> None:
        raise KeyError("car-7")

    mesh.add_actor("patrols", stumble)
    world.run(0.1)
    found = [text.partition(" in ")[0] for text in ends_of_actors(mesh)]
    assert found == ["patrols ended by itself: KeyError('car-7')"]


def test_after_a_torn_log_the_judge_goes_on_from_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is that of a fold of the whole log, and it has folded only what follows the copy."""
    monkeypatch.setattr(judges_of_folds, "KEPT_EVERY", 4)
    world = World(0)
    mesh, town = Mesh(world, tmp_path, Journal(world)), Town(Random(0), households=1, duration_s=1_000.0)
    faults = Faults(mesh, duration_s=1_000.0, torn_tails=True)
    case = Case(mesh, faults, town, HeadEnd(world, town), desks={}, fail=lambda failure: pytest.fail(str(failure)))
    judge, name = FoldJudge(case), flow.log_stream(0)
    log = mesh.server.streams[name] = MemoryStream({"name": name}, world.now_ns)
    log.on_stored.append(partial(judge.stored, name))
    folded: list[int] = []
    step = fold.step

    def counted(state: State, entry: Entry) -> list[Output]:
        folded.append(entry.sequence)
        return step(state, entry)

    monkeypatch.setattr(fold, "step", counted)

    def publish(report_id: int) -> None:
        world.run(world.elapsed_s + 1.0)
        reported = log_pb2.EquipmentReport(
            device_id="tag-0",
            report_id=f"report-{report_id}",
            event=log_pb2.BATTERY_LOW,
            event_time_ms=world.now_ns // 1_000_000,
        )
        entry = log_pb2.LogEntry(equipment=reported).SerializeToString()
        log.publish("log.0.report", {}, b"", data=entry, now_ns=world.now_ns)

    for report_id in range(1, 11):
        publish(report_id)
    log.tear(4)
    folded.clear()
    judge.torn(name, 7)
    assert folded == [5, 6]
    publish(20)
    whole = FoldJudge(case)
    for message in log.messages.values():
        whole.stored(name, message)
    assert codec.encode(judge.state) == codec.encode(whole.state)
    assert judge.state.sequence == 7
