"""Judges of I6 to I8: nothing ends silently, the mesh recovers, and each disclosure has a row of the ledger."""

from __future__ import annotations

import sqlite3
import traceback
from contextlib import closing
from pathlib import Path

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, ledger_pb2
from tests.simulation.actors.reviewer import Reviewer
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import Case, Judge
from tests.simulation.kernel.journal import Line

LOSS = ("stream_went_back", "publications_were_lost", "stream_read_again", "alert_was_missing")
"""Alarms that a torn tail causes, and that nothing else may cause."""

_ROOT = f"{Path(__file__).parents[3]}/"
_OWN = (f"{_ROOT}services/", f"{_ROOT}tests/simulation/actors/")
"""Folders whose lines of a traceback are shown."""

OF_ENDED_ORDERS = "positions from before the end of an order that is over"
"""Reason of the dead letters that are no defect: a device delivers kept reports after its order has ended."""


class SilenceJudge(Judge):
    """I6 and I7: no service ends by itself, no error is unhandled, no alarm without a cause, and all serve in the end."""

    name = "I6"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._exits = 0
        self._serves: dict[str, bool] = {}
        self._is_torn = False
        case.mesh.journal.on_line.append(self._note)

    def torn(self, stream: str, first_lost: int) -> None:
        self._is_torn = True

    def _note(self, line: Line) -> None:
        if line.event in ("serving", "not_serving"):
            self._serves[line.process] = line.event == "serving"
        elif line.event == "unhandled":
            self.fail(f"{line.process} has an error that nothing handles: {line.fields['reason']}")
        elif line.event == "evaluators_differ":
            self.fail(f"{line.process} found that the evaluators' states differ")
        elif line.event in LOSS and not self._is_torn:
            self.fail(f"{line.process} reports {line.event} although nothing was lost: {line.fields}")

    def each_second(self) -> None:
        exits = sum(len(process.exits) for process in self.case.mesh.services)
        if exits > self._exits:
            self._exits = exits
            for process in self.case.mesh.services:
                if process.exits:
                    self.fail(f"{process.name} ended by itself: {place_of(process.exits[-1])}")

    def finish(self) -> None:
        for process in self.case.mesh.services:
            if not process.is_up or not self._serves.get(process.name):
                self.fail(f"I7: {process.name} doesn't serve after {self.case.faults.calm_s:.0f} s of calm")
        for stored in self.case.mesh.server.streams[flow.DEAD_LETTERS.name].messages.values():
            reason = alert_pb2.DeadLetter.FromString(stored.data).reason
            if OF_ENDED_ORDERS not in reason:
                self.fail(f"a message couldn't be used: {stored.subject}: {reason}")
                return


def place_of(error: BaseException | None) -> str:
    """An error with the lines of services and actors that it passed, innermost last."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__) if error else []
    lines = [
        f"{frame.filename.removeprefix(_ROOT)}:{frame.lineno}" for frame in frames if frame.filename.startswith(_OWN)
    ]
    return f"{error!r} in {' > '.join(lines)}"


class LedgerJudge(Judge):
    """I8: each disclosure that was published, and each read that was answered, has a row in the registry's ledger."""

    name = "I8"

    def __init__(self, case: Case, folder: Path, reviewer: Reviewer) -> None:
        super().__init__(case)
        self._reviewer = reviewer
        self._database = folder / "registry" / "registry.sqlite3"
        self._published: dict[str, float] = {}

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.DISCLOSURES.name:
            disclosure = ledger_pb2.Disclosure.FromString(message.data)
            self._published[disclosure.disclosure_id] = self.world.elapsed_s

    def finish(self) -> None:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            written = {row[0] for row in connection.execute("select disclosure_id from ledger")}
        for disclosure_id, since_s in self._published.items():
            if disclosure_id not in written and self.world.elapsed_s - since_s > 60:
                self.fail(f"disclosure {disclosure_id} has no row in the ledger")
                return
        for disclosure_id in self._reviewer.disclosure_ids:
            if disclosure_id not in written:
                self.fail(f"a record was read as disclosure {disclosure_id}, which has no row in the ledger")
                return
