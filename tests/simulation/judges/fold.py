"""Judges of the decision: stored alerts equal those of an offline fold (I2), and evaluators equal it too (I5)."""

from __future__ import annotations

import pickle
from collections import Counter, deque
from datetime import UTC, datetime
from typing import NamedTuple

from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.messaging import flow, stored
from services.geofence import translate
from services.geofence.consumer import Evaluator
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import alert_pb2
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import Case, Judge
from tests.simulation.kernel.journal import Line
from tests.simulation.mesh.moments import Moment
from tests.simulation.mesh.processes import EVALUATORS

PUBLISHED_WITHIN_S = 10.0
"""Maximum time without faults until an alert of the fold is stored, seconds."""
APPLIED_WITHIN_S = 30.0
"""Maximum time without faults until an evaluator has applied an entry, seconds."""
ENTRY_WITHIN_S = 40.0
"""Maximum time without faults between two entries of the log, seconds: evaluators write ticks while nobody reports."""
PUBLISHED_BY_BOTH_S = 60.0
"""Maximum time without faults until each evaluator has found an alert stored, seconds."""
NOTICED_WITHIN_S = 120.0
"""Maximum time until an evaluator notices that the log or its outputs went back, and restores an older state, seconds."""
DIGEST_INTERVAL_S = 60
KEPT_EVERY, KEPT = 100, 3
"""Number of entries after which the judge keeps a copy of its fold, and number of the newest copies that it has. The server loses few
messages at a time, so a copy is seldom older than needed, and without copies the judge would fold the whole log again each time."""


class _Copy(NamedTuple):
    """The judge's fold after an entry."""

    sequence: int
    state: bytes
    """The state by pickle, whose copies don't depend on the codec that is judged."""
    expected: dict[str, bytes]


class FoldJudge(Judge):
    """I2 and I5. Folds each stored entry once itself, and compares alerts and states with its own.

    An evaluator that finds alerts or measures lost restores a state before them, perhaps that of an empty log, and publishes them once
    more. For some milliseconds it has then gone back, though the log has lost nothing (seeds 2180 and 3028).
    """

    name = "I2"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.state = State(0)
        self.expected: dict[str, bytes] = {}
        """Bytes of each alert of the fold."""
        self._copies: deque[_Copy] = deque(maxlen=KEPT)
        self._orphans: set[str] = set()
        """Alerts of entries that a torn tail has lost. They stay published."""
        self._missing: dict[str, float] = {}
        self._stored: dict[str, bytes] = {}
        self._log_id = ""
        self._entry_s = 0.0
        """When the log last got an entry, seconds."""
        self._torn_s = -NOTICED_WITHIN_S
        """When the log last lost entries, seconds."""
        self._outputs_torn_s = -NOTICED_WITHIN_S
        """When ALERTS or MEASURES last lost messages, seconds."""
        self._newest: dict[tuple[str, int], int] = {}
        """Applied sequence of each run of an evaluator, by its name and start."""

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.LOG_META.name:
            self._log_id = stored.log_meta(message.data).log_id
            self._copies.clear()
            self._restore()
        elif stream == flow.log_stream(0):
            self._entry_s = self.world.elapsed_s
            self._fold(message)
            if message.sequence % KEPT_EVERY == 0 and self.case.faults.loses_messages:
                self._copies.append(_Copy(message.sequence, pickle.dumps(self.state), dict(self.expected)))
        elif stream == flow.ALERTS.name:
            self._compare(message.subject.rpartition(".")[2], message.data)

    def _restore(self) -> None:
        """Goes back to the newest copy, or to the beginning of the log."""
        self.expected.clear()
        self._missing.clear()
        if not self._copies:
            clock = MeshClock()
            self.state = State(0, log_id=self._log_id, clock_rate=clock.rate, clock_anchor_ms=clock.anchor_ms)
            return
        copy = self._copies[-1]
        self.state = pickle.loads(copy.state)  # noqa: S301  # our own
        for alert_id, content in copy.expected.items():
            self._expect(alert_id, content)

    def _fold(self, message: Stored) -> None:
        # As nats-py computes the time of a message, whose float is less exact than the stream's stamp.
        stamp_ms = int(datetime.fromtimestamp(message.stored_at_ns / 1_000_000_000.0, UTC).timestamp() * 1000)
        try:
            body = translate.stored_body(message.subject, message.data)
        except InvalidField as error:
            self.fail(f"the log holds an entry that can't be read: {error}")
            return
        for output in fold.step(self.state, Entry(message.sequence, stamp_ms, body)):
            if isinstance(output, Alert):
                content = translate.alert_to_proto(output, 0).SerializeToString()
                self._expect(output.alert_id, content)

    def _expect(self, alert_id: str, content: bytes) -> None:
        self.expected[alert_id] = content
        if alert_id not in self._stored:
            self._missing[alert_id] = self.world.elapsed_s
            self.case.faults.moment(Moment.DECISION)

    def _compare(self, alert_id: str, content: bytes) -> None:
        if alert_id in self._stored:
            self.fail(f"{alert_id} is stored twice")
        self._stored[alert_id] = content
        self._missing.pop(alert_id, None)
        expected = self.expected.get(alert_id)
        if expected is None:
            if alert_id not in self._orphans:
                self.fail(f"{alert_id} was published, but the fold of the log doesn't give it")
        elif expected != content:
            fields = ", ".join(_different_fields(expected, content)) or "the order of fields"
            self.fail(f"{alert_id} was published with other bytes than the fold of the log gives: {fields}")

    def torn(self, stream: str, first_lost: int) -> None:
        if stream in (flow.ALERTS.name, flow.MEASURES.name):
            self._outputs_torn_s = self.world.elapsed_s
        if stream == flow.ALERTS.name:
            there = {
                message.subject.rpartition(".")[2]: message.data
                for message in self.case.mesh.server.streams[stream].messages.values()
            }
            self._missing.update(
                (alert_id, self.world.elapsed_s) for alert_id in self.expected if alert_id not in there
            )
            self._stored = there
        elif stream == flow.log_stream(0):
            known = dict(self.expected)
            while self._copies and self._copies[-1].sequence >= first_lost:
                self._copies.pop()
            self._restore()
            for message in self.case.mesh.server.streams[stream].after(self.state.sequence + 1):
                self._fold(message)
            self._orphans |= known.keys() - self.expected.keys()
            self._torn_s = self.world.elapsed_s

    def each_second(self) -> None:
        now_s, calm_s = self.world.elapsed_s, self.case.faults.calm_s
        if min(calm_s, now_s - self._entry_s) > ENTRY_WITHIN_S:
            self.fail(f"I7: the log has had no entry for {now_s - self._entry_s:.0f} s, so time passes for no decision")
        if calm_s > PUBLISHED_WITHIN_S:
            for alert_id, since_s in self._missing.items():
                if now_s - since_s > PUBLISHED_WITHIN_S:
                    self.fail(f"{alert_id} wasn't published within {PUBLISHED_WITHIN_S:.0f} s of calm")
                    return
        for evaluator in self._evaluators():
            self._check_progress(*evaluator, calm_s=calm_s)

    def _evaluators(self) -> list[tuple[str, int, Evaluator]]:
        processes = [self.case.mesh.processes[name] for name in EVALUATORS]
        return [
            (process.name, process.starts, process.facts["evaluator"])
            for process in processes
            if process.is_up and "evaluator" in process.facts
        ]

    def _check_progress(self, name: str, run: int, evaluator: Evaluator, *, calm_s: float) -> None:
        sequence, own = evaluator.state.sequence, self.state.sequence
        is_torn = self.world.elapsed_s - self._torn_s < NOTICED_WITHIN_S
        may_go_back = is_torn or self.world.elapsed_s - self._outputs_torn_s < NOTICED_WITHIN_S
        if sequence < self._newest.get((name, run), 0) and not may_go_back:
            self.fail(f"I5: {name} went back from {self._newest[name, run]} to {sequence}")
        self._newest[name, run] = sequence
        # Until an evaluator has noticed that the log went back, its state has the entries that were lost.
        is_due = sequence == own and not is_torn and int(self.world.elapsed_s) % DIGEST_INTERVAL_S == 0
        if is_due and codec.state_digest(evaluator.state) != codec.state_digest(self.state):
            self.fail(f"I5: the state of {name} after {own} differs from the fold of the log")
        if calm_s > APPLIED_WITHIN_S and own - sequence > 100:
            self.fail(f"I7: {name} is {own - sequence} entries behind after {calm_s:.0f} s of calm")

    def finish(self) -> None:
        for name, _, evaluator in self._evaluators():
            same_entry = evaluator.state.sequence == self.state.sequence
            if same_entry and codec.encode(evaluator.state) != codec.encode(self.state):
                self.fail(f"I5: the whole state of {name} differs from the fold of the log")
        twice = [
            f"{device_id} {report_id}"
            for device_id, track in self.state.tracks.items()
            for report_id, count in Counter(fix.report_id for fix in track.fixes).items()
            if count > 1
        ]
        if twice:
            self.fail(f"I1: reports count twice: {', '.join(twice[:5])}")


def _different_fields(expected: bytes, content: bytes) -> list[str]:
    """Names of the fields in which two serialised alerts differ."""
    first, second = alert_pb2.Alert.FromString(expected), alert_pb2.Alert.FromString(content)
    names = [descriptor.name for descriptor in alert_pb2.Alert.DESCRIPTOR.fields]
    return [name for name in names if getattr(first, name) != getattr(second, name)]


class EvaluatorsJudge(Judge):
    """I2: each of the two evaluators publishes each alert, or finds it stored. Otherwise the mesh would depend on one of them."""

    name = "I2"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._seen: dict[str, set[str]] = {name: set() for name in EVALUATORS}
        self._stored: dict[str, float] = {}
        case.mesh.journal.on_line.append(self._note)

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            self._stored[message.subject.rpartition(".")[2]] = self.world.elapsed_s

    def torn(self, stream: str, first_lost: int) -> None:
        self._stored.clear()  # an evaluator may restore a state after alerts that only the other has published

    def _note(self, line: Line) -> None:
        if line.event in ("alert_published", "alert_already_published"):
            self._seen[line.process].add(line.fields["alert_id"])

    def finish(self) -> None:
        if self.case.faults.calm_s < PUBLISHED_BY_BOTH_S:
            return
        for alert_id, since_s in self._stored.items():
            silent = [name for name, seen in self._seen.items() if alert_id not in seen]
            if silent and self.world.elapsed_s - since_s > PUBLISHED_BY_BOTH_S:
                self.fail(f"{silent[0]} has never published {alert_id}")
                return
