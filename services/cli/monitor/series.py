"""Series of canaries of one mesh: its exercise, its state, and the file that keeps both, so that a restarted watch goes on."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format

from services.cli.monitor import canary
from services.cli.monitor.canary import Canary, CanaryOutage, CanaryState
from services.cli.monitor.exercise import ExerciseRun
from services.cli.stack.mesh import Clients
from services.common.observability.telemetry import logger
from services.common.storage import durable
from tandem.common.v1 import exercise_pb2
from tandem.registry.v1 import exercise_pb2 as records_pb2

WATCH = "spiffe://tandem/watch/canary"
VALID_S = 3 * 86_400
STATE = "watch.json"


class OpenAssignment(NamedTuple):
    """Assignment of a canary that isn't stood down."""

    leg: str
    slot: int


class CanarySeries:
    """Canaries of one mesh, and the time of that mesh."""

    def __init__(self, clients: Clients, folder: Path) -> None:
        self._clock, self._path = clients.clock, folder / STATE
        saved = _load(self._path)
        exercise_id = saved.get("exercise_id") or secrets.token_hex(6)
        self.exercise = ExerciseRun(
            clients, exercise_pb2.CANARY, exercise_id=exercise_id, run_by=WATCH, valid_s=VALID_S
        )
        self.exercise.records = json_format.ParseDict(saved.get("records", {}), records_pb2.PutExerciseResponse())
        self.sent: int = saved.get("sent", 0)
        """Number of canaries sent."""
        self.slot: int = saved.get("slot", 0)
        """Slot of the last canary."""
        outage = CanaryOutage(**saved["outage"]) if saved.get("outage") else None
        missing_ms = saved.get("missing_since_ms")
        missing_s = None if missing_ms is None else (self.now_ms() - missing_ms) / 1000
        self.state = CanaryState([] if outage else canary.canaries_at_start(missing_s, self.now_s()), outage)
        self.open: dict[str, OpenAssignment] = {}
        """Assignments that aren't stood down, by id."""

    def save(self) -> None:
        """Writes the file. A failure is logged, as the watch must go on with a full disk."""
        pending = self.state.pending
        missing_ms = None
        if pending is not None:
            missing_ms = self.now_ms() - round((self.now_s() - pending.sent_s) * 1000)
        saved = {
            "exercise_id": self.exercise.exercise_id,
            "records": json_format.MessageToDict(self.exercise.records),
            "sent": self.sent,
            "slot": self.slot,
            "missing_since_ms": missing_ms,
            "outage": asdict(self.state.outage) if self.state.outage else None,
        }
        try:
            durable.write(self._path, f"{json.dumps(saved)}\n".encode())
        except OSError as error:
            logger().error("watch_not_saved", reason=f"{type(error).__name__} {error.errno}")

    def slot_of(self, order_ids: Sequence[str]) -> int | None:
        """Slot of the wearer with one of these orders; None if they are of another exercise or of a real case."""
        slots = (n for n, case in enumerate(self.exercise.records.cases) if case.order_id in order_ids)
        return next(slots, None)

    def latest_of(self, order_ids: Sequence[str]) -> Canary | None:
        """Latest canary of the wearer with one of these orders, or None."""
        slot = self.slot_of(order_ids)
        return None if slot is None else self.state.latest_of(slot)

    def now_ms(self) -> int:
        """Mesh time, milliseconds since 1970 UTC."""
        return self._clock.now_ms()

    def now_s(self) -> float:
        """Mesh time since an arbitrary origin, seconds, which no change of the machine's clock moves."""
        return time.monotonic() * self._clock.rate

    async def sleep(self, mesh_s: float) -> None:
        """Sleeps for seconds of mesh time."""
        await asyncio.sleep(max(mesh_s, 0) / self._clock.rate)


def _load(path: Path) -> dict[str, Any]:
    """The saved state; empty if the file is absent or unreadable, and the watch then starts with a new exercise."""
    try:
        saved: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger().error("watch_state_unreadable", reason=type(error).__name__)
        return {}
    return saved
