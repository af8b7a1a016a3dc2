"""The watch over the whole chain: sends canaries, acknowledges the legs' offers of them, and pages when a canary is missing.

It observes the chain only from outside: ingest's answer, the alert, each leg's steps. A file keeps the state that must survive a
restart: the id of its exercise, the next wearer, since when a canary is missing, and the pages of the outage.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format

from services.cli.calls import FIRST_DELAY_S, LAST_DELAY_S, may_succeed_later
from services.cli.failure import of_rpc
from services.cli.monitor import canary, probes
from services.cli.monitor.canary import Canary, CanaryOutage, CanaryState, Page, PageKind
from services.cli.monitor.exercise import INSIDE_M, OUTSIDE_M, ExerciseRun, lead_ms
from services.cli.monitor.pager import PageMessage, Pager, page_all
from services.cli.stack.mesh import Clients
from services.cli.stack.private_files import write_private
from services.common import times
from services.common.ids import hash_id
from services.common.observability.telemetry import logger
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.registry.v1 import exercise_pb2 as records_pb2

WATCH = "spiffe://tandem/watch/canary"
SLOTS = 6
"""Number of wearers, who breach in turn. Each is stood down long before its next turn."""
VALID_S = 3 * 86_400
PROLONGED_INTERVAL_S = 12 * 3_600
RETRY_S = 5.0
CHECK_INTERVAL_S = 1.0
STATE = "watch.json"

State = dispatch_pb2.AssignmentState
_UNANSWERED = (State.OFFERED, State.ESCALATED)
_OVER = (State.STOOD_DOWN, State.CLOSED)


class CanaryWatch:
    """Sends and follows the canaries of one mesh."""

    def __init__(self, clients: Clients, folder: Path, pagers: Sequence[Pager], *, say: Callable[[str], None]) -> None:
        self._clients, self._folder, self._pagers, self._say = clients, folder, pagers, say
        self._identity = clients.identity(WATCH)
        saved = _load(folder / STATE)
        exercise_id = saved.get("exercise_id") or secrets.token_hex(6)
        self._exercise = ExerciseRun(
            clients=clients, kind=exercise_pb2.CANARY, exercise_id=exercise_id, run_by=WATCH, valid_s=VALID_S
        )
        self._exercise.records = json_format.ParseDict(saved.get("records", {}), records_pb2.PutExerciseResponse())
        self._sent: int = saved.get("sent", 0)
        self._slot: int = saved.get("slot", 0)
        """Slot of the last canary."""
        outage = CanaryOutage(**saved["outage"]) if saved.get("outage") else None
        missing_ms = saved.get("missing_since_ms")
        missing_s = None if missing_ms is None else (clients.clock.now_ms() - missing_ms) / 1000
        self._watched = CanaryState([] if outage else canary.canaries_at_start(missing_s, self._now_s()), outage)
        self._open: dict[str, tuple[str, int]] = {}
        """Leg and slot of each assignment that isn't stood down, by assignment id."""
        self._seen: dict[str, int] = {}
        """Sequence of the last step of each leg, so that a broken stream loses no stand-down."""
        self._refused = ""

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._judge())
            tasks.create_task(self._prolong())
            tasks.create_task(self._send())
            tasks.create_task(self._keep_following(self._follow_alerts, "alerts"))
            for leg in canary.LEGS:
                tasks.create_task(self._keep_following(lambda leg=leg: self._follow(leg), leg))  # type: ignore[misc]

    # ── canaries ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _prolong(self) -> None:
        """Creates the records and keeps them valid. Canaries use the registry for nothing else."""
        while True:
            try:
                await self._exercise.put(SLOTS)
            except grpc.aio.AioRpcError as error:
                self._refused = f"the registry doesn't create the records: {of_rpc(error).message}"
                logger().error("canaries_not_prolonged", reason=self._refused)
                await self._sleep(RETRY_S)
                continue
            self._refused = ""
            self._save()
            await self._sleep(PROLONGED_INTERVAL_S)

    async def _send(self) -> None:
        """Reports all wearers every 20 s, one of them inside. The first report has all outside, so that none is a position jump."""
        while not self._exercise.records.cases and not self._refused:
            await self._sleep(0.5)
        if self._exercise.records.cases:
            await self._exercise.report(dict.fromkeys(range(SLOTS), OUTSIDE_M))
        await self._sleep(lead_ms() / 1000)
        due_s = self._now_s()
        while True:
            await self._send_one()
            due_s = max(due_s + canary.INTERVAL_S, self._now_s())
            await self._sleep(due_s - self._now_s())

    async def _send_one(self) -> None:
        self._sent += 1
        # An incomplete canary may still come late. The same wearer breaches again, or all wearers would end up inside.
        last = self._watched.canaries[-1] if self._watched.canaries else None
        after = self._slot + (1 if last is None or last.complete or last.number == 0 else 0)
        busy = {occupied for _, occupied in self._open.values()}
        slot = next(((after + n) % SLOTS for n in range(SLOTS) if (after + n) % SLOTS not in busy), None)
        self._slot = after % SLOTS if slot is None else slot
        sent = Canary(self._sent, self._slot, self._now_s())
        self._watched.canaries.append(sent)
        self._save()
        if not self._exercise.records.cases:
            sent.failed = self._refused
            return
        # A wearer is stood down only after reports from outside.
        distances_m = dict.fromkeys(range(SLOTS), OUTSIDE_M)
        if slot is None:
            await self._exercise.report(distances_m)
            sent.failed = "no wearer of an earlier canary was stood down"
        else:
            sent.durable, sent.failed = await self._exercise.report(distances_m | {slot: INSIDE_M})

    # ── observations ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_following(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Follows a stream until cancelled, and reopens it whenever it breaks: the watch must outlast the mesh's failures."""
        delay_s = FIRST_DELAY_S
        while True:
            began_s = time.monotonic()
            try:
                await work()
            except grpc.aio.AioRpcError as error:
                if not may_succeed_later(error):
                    logger().error("stream_refused", stream=what, reason=of_rpc(error).message)
            delay_s = FIRST_DELAY_S if time.monotonic() - began_s > LAST_DELAY_S else min(2 * delay_s, LAST_DELAY_S)
            await asyncio.sleep(delay_s)

    async def _follow_alerts(self) -> None:
        request = geofence_pb2.WatchAlertsRequest(new_only=True)
        stream = self._clients.geofence.WatchAlerts(request, metadata=self._identity)
        async for message in stream:
            alert = message.alert
            latest = self._canary_of([alert.order_id])
            if latest is not None and alert.demand == geometry_pb2.Demand.RESPOND:
                latest.decided = True

    async def _follow(self, leg: str) -> None:
        # The first subscription needs no earlier steps: the leg repeats unanswered offers.
        after = self._seen.get(leg, 0)
        request = dispatch_pb2.SubscribeRequest(after_sequence=after, new_only=not after, others=leg in canary.AGENCIES)
        stream = self._clients.dispatch[leg].Subscribe(request, metadata=self._identity)
        try:
            async for message in stream:
                if message.HasField("other"):
                    self._note_other(leg, message.other)
                else:
                    self._seen[leg] = max(self._seen.get(leg, 0), message.sequence)
                    await self._note(leg, message.step.assignment)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                # The leg has lost its database with all open assignments.
                self._seen.pop(leg, None)
                self._open = {id_: held for id_, held in self._open.items() if held[0] != leg}
            raise

    def _note_other(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        latest = self._canary_of(assignment.order_ids)
        if latest is not None and assignment.leg != alert_pb2.WARNING and assignment.state not in _OVER:
            latest.notified.add(leg)

    async def _note(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        slot = self._slot_of(assignment.order_ids)
        if slot is None:
            return
        latest = self._watched.latest_of(slot)
        if assignment.state in _OVER:
            self._open.pop(assignment.assignment_id, None)
            if latest is not None and leg in latest.accepted:
                latest.stood_down.add(leg)
            return
        if assignment.state == State.NOTIFIED:
            return
        self._open[assignment.assignment_id] = leg, slot
        if latest is not None:
            latest.offered.add(leg)
        if assignment.state in _UNANSWERED:
            request = dispatch_pb2.AcknowledgeRequest(assignment_id=assignment.assignment_id)
            try:
                await self._clients.dispatch[leg].Acknowledge(request, timeout=5.0, metadata=self._identity)
            except grpc.aio.AioRpcError as error:
                logger().warning("canary_not_accepted", leg=leg, reason=of_rpc(error).message)
                return
        if latest is not None:
            latest.accepted.add(leg)

    def _slot_of(self, order_ids: Sequence[str]) -> int | None:
        slots = (n for n, case in enumerate(self._exercise.records.cases) if case.order_id in order_ids)
        return next(slots, None)

    def _canary_of(self, order_ids: Sequence[str]) -> Canary | None:
        slot = self._slot_of(order_ids)
        return None if slot is None else self._watched.latest_of(slot)

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge(self) -> None:
        """Judges the canaries every second, and pages until a pager has delivered."""
        while True:
            before = self._watched.outage
            page = canary.judge(self._watched, self._now_s(), self._clients.clock.now_ms())
            if self._watched.outage != before:
                self._save()
            if page is not None:
                message = await self._message(page)
                self._say(message.text)
                logger().critical(
                    "canary_" + page.kind.lower(), last_seen=message.last_seen, outage_id=message.outage_id
                )
                if not self._pagers or await page_all(self._pagers, message):
                    canary.delivered(self._watched, page, self._clients.clock.now_ms())
                    self._save()
            await self._sleep(CHECK_INTERVAL_S)

    async def _message(self, page: Page) -> PageMessage:
        outage, now_ms = page.outage, self._clients.clock.now_ms()
        silent = () if page.kind is PageKind.BACK else await probes.not_answering(self._clients.mesh)
        since = times.to_rfc3339(outage.since_ms)
        if page.kind is PageKind.BACK:
            lasted_s = ((outage.over_ms or now_ms) - outage.since_ms) // 1000
            text = f"Tandem: canaries come through again; they were missing from {since} for {lasted_s} s"
        else:
            lasted_s = (now_ms - outage.since_ms) // 1000
            text = f"Tandem: canaries have been missing since {since} ({lasted_s} s). Last seen: {outage.seen}."
            text += f" Not answering: {', '.join(silent)}." if silent else " All parts answer."
        outage_id = hash_id("outage", self._exercise.exercise_id, outage.since_ms)
        id_ = hash_id("page", outage_id, page.kind.value, outage.pages)
        return PageMessage(
            id=id_,
            kind=page.kind.value,
            text=text,
            outage_id=outage_id,
            since=since,
            last_seen=outage.seen,
            not_answering=silent,
        )

    # ── time and state ───────────────────────────────────────────────────────────────────────────────────────────────

    def _now_s(self) -> float:
        return time.monotonic() * self._clients.clock.rate

    async def _sleep(self, mesh_s: float) -> None:
        await asyncio.sleep(max(mesh_s, 0) / self._clients.clock.rate)

    def _save(self) -> None:
        pending = self._watched.pending
        missing_ms = None
        if pending is not None:
            missing_ms = self._clients.clock.now_ms() - round((self._now_s() - pending.sent_s) * 1000)
        saved = {
            "exercise_id": self._exercise.exercise_id,
            "records": json_format.MessageToDict(self._exercise.records),
            "sent": self._sent,
            "slot": self._slot,
            "missing_since_ms": missing_ms,
            "outage": asdict(self._watched.outage) if self._watched.outage else None,
        }
        try:
            write_private(self._folder / STATE, json.dumps(saved) + "\n")
        except OSError as error:  # on a full disk, the watch must go on
            logger().error("watch_not_saved", reason=f"{type(error).__name__} {error.errno}")


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
