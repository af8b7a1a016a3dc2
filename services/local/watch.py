"""The watch over the whole chain: sends canaries, acknowledges the legs' offers of them, and pages when a canary is missing.

The watch observes the chain only from outside: ingest's answer, the alert, each leg's steps. A file keeps the state that must survive a
restart: the exercise with its records, the number of the last wearer, the time of the oldest incomplete canary, and the outage. It
pages the person on call by a program or a signed webhook, without the mesh, as the mesh may be broken.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
import grpc.aio
from google.protobuf import json_format

from services.client.actors import UNANSWERED
from services.client.calls import RETRY, may_succeed_later
from services.client.drill import INSIDE_M, OUTSIDE_M, ExerciseRun, lead_ms
from services.client.mesh import Clients
from services.common import times
from services.common.errors import FailedPrecondition
from services.common.failure import MISUSED, CommandFailed, of_rpc
from services.common.ids import hash_id
from services.common.messaging import flow
from services.common.observability.telemetry import logger
from services.common.storage import stored_files
from services.common.web import receivers
from services.common.web.receivers import Receiver, open_session, post
from services.local import canary, monitoring
from services.local.canary import Canary, CanaryOutage, CanaryState, Page, PageKind
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.registry.v1 import exercise_pb2 as records_pb2

WATCH_IDENTITY = "spiffe://tandem/watch/canary"
VALID_S = 3 * 86_400
STATE_FILE = "watch.json"
SLOTS = 6
"""Number of wearers, who breach in turn. Each breach is stood down long before the wearer's next turn."""
PROLONGED_INTERVAL_S = 12 * 3_600
RETRY_S = 5.0
State = dispatch_pb2.AssignmentState
_OVER = (State.STOOD_DOWN, State.CLOSED)
CHECK_INTERVAL_S = 1.0


class OpenAssignment(NamedTuple):
    """Assignment of a canary that isn't stood down."""

    leg: str
    slot: int


class CanarySeries:
    """Canaries of one mesh, and the time of that mesh."""

    def __init__(self, clients: Clients, folder: Path) -> None:
        self._clock, self._path = clients.clock, folder / STATE_FILE
        saved = _load(self._path)
        exercise_id = saved.get("exercise_id") or secrets.token_hex(6)
        self.exercise = ExerciseRun(
            clients, exercise_pb2.CANARY, exercise_id=exercise_id, run_by=WATCH_IDENTITY, valid_s=VALID_S
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
            stored_files.write(self._path, f"{json.dumps(saved)}\n".encode())
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


class CanarySender:
    """Sends the canaries of a series."""

    def __init__(self, series: CanarySeries) -> None:
        self._series = series
        self._refused = ""
        """Reason why the registry doesn't create the records; else empty."""

    async def prolong(self) -> None:
        """Creates the records and keeps them valid, until cancelled. Nothing else here needs the registry."""
        while True:
            try:
                await self._series.exercise.put(SLOTS)
            except grpc.aio.AioRpcError as error:
                self._refused = f"the registry doesn't create the records: {of_rpc(error).message}"
                logger().error("canaries_not_prolonged", reason=self._refused)
                await self._series.sleep(RETRY_S)
                continue
            self._refused = ""
            self._series.save()
            await self._series.sleep(PROLONGED_INTERVAL_S)

    async def send(self) -> None:
        """Reports all wearers every 20 s, one of them inside, until cancelled.

        The first report has all wearers outside, so that no wearer's later breach is a position jump.
        """
        series = self._series
        while not series.exercise.records.cases and not self._refused:
            await series.sleep(0.5)
        if series.exercise.records.cases:
            await series.exercise.report(dict.fromkeys(range(SLOTS), OUTSIDE_M))
        await series.sleep(lead_ms() / 1000)
        due_s = series.now_s()
        while True:
            await self._send_next()
            due_s = max(due_s + canary.INTERVAL_S, series.now_s())
            await series.sleep(due_s - series.now_s())

    async def _send_next(self) -> None:
        series = self._series
        after, free = self._next_slots()
        series.sent += 1
        series.slot = after if free is None else free
        sent = Canary(series.sent, series.slot, series.now_s())
        series.state.canaries.append(sent)
        series.save()
        if not series.exercise.records.cases:
            sent.failed = self._refused
            return
        # A wearer is stood down only after reports from outside.
        distances_m = dict.fromkeys(range(SLOTS), OUTSIDE_M)
        if free is None:
            await series.exercise.report(distances_m)
            sent.failed = "no wearer of an earlier canary was stood down"
        else:
            sent.durable, sent.failed = await series.exercise.report(distances_m | {free: INSIDE_M})

    def _next_slots(self) -> tuple[int, int | None]:
        """The slot whose turn it is, and the first slot from there on with a stood-down wearer; None if no slot has one."""
        series = self._series
        # An incomplete canary may still come late, so its wearer breaches again. Otherwise all wearers would end up inside.
        last = series.state.canaries[-1] if series.state.canaries else None
        after = (series.slot + (1 if last is None or last.complete or last.number == 0 else 0)) % SLOTS
        busy = {assignment.slot for assignment in series.open.values()}
        turns = ((after + n) % SLOTS for n in range(SLOTS))
        return after, next((slot for slot in turns if slot not in busy), None)


class CanaryObserver:
    """Notes the progress of a series of canaries through the chain."""

    def __init__(self, clients: Clients, series: CanarySeries) -> None:
        self._clients, self._series = clients, series
        self._identity = clients.identity(WATCH_IDENTITY)
        self._seen: dict[str, int] = {}
        """Sequence of the last step that was seen of each leg, so that a reopened stream loses no stand-down."""

    async def run(self) -> None:
        """Follows the alerts and all legs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_keep_following(self._follow_alerts, "alerts"))
            for leg in flow.LEGS:
                tasks.create_task(_keep_following(partial(self._follow_leg, leg), leg))

    async def _follow_alerts(self) -> None:
        request = geofence_pb2.WatchAlertsRequest(new_only=True)
        stream = self._clients.geofence.WatchAlerts(request, metadata=self._identity)
        async for message in stream:
            latest = self._series.latest_of([message.alert.order_id])
            if latest is not None and message.alert.demand == geometry_pb2.Demand.RESPOND:
                latest.decided = True

    async def _follow_leg(self, leg: str) -> None:
        # The first subscription needs no earlier steps: the leg repeats unanswered offers.
        after = self._seen.get(leg, 0)
        request = dispatch_pb2.SubscribeRequest(
            after_sequence=after, new_only=not after, others=leg in flow.AGENCY_LEGS
        )
        stream = self._clients.legs[leg].dispatch.Subscribe(request, metadata=self._identity)
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
                for id_ in [id_ for id_, assignment in self._series.open.items() if assignment.leg == leg]:
                    del self._series.open[id_]
            raise

    def _note_other(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        latest = self._series.latest_of(assignment.order_ids)
        if latest is not None and assignment.leg != alert_pb2.WARNING and assignment.state not in _OVER:
            latest.notified.add(leg)

    async def _note(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        series = self._series
        slot = series.slot_of(assignment.order_ids)
        if slot is None:
            return
        latest = series.state.latest_of(slot)
        if assignment.state in _OVER:
            series.open.pop(assignment.assignment_id, None)
            if latest is not None and leg in latest.accepted:
                latest.stood_down.add(leg)
            return
        if assignment.state == State.NOTIFIED:
            return
        series.open[assignment.assignment_id] = OpenAssignment(leg, slot)
        if latest is not None:
            latest.offered.add(leg)
        accepted = assignment.state not in UNANSWERED or await self._acknowledge(leg, assignment.assignment_id)
        if latest is not None and accepted:
            latest.accepted.add(leg)

    async def _acknowledge(self, leg: str, assignment_id: str) -> bool:
        request = dispatch_pb2.AcknowledgeRequest(assignment_id=assignment_id)
        try:
            await self._clients.legs[leg].dispatch.Acknowledge(request, timeout=5.0, metadata=self._identity)
        except grpc.aio.AioRpcError as error:
            logger().warning("canary_not_accepted", leg=leg, reason=of_rpc(error).message)
            return False
        return True


async def _keep_following(work: Callable[[], Awaitable[None]], what: str) -> None:
    """Follows a stream until cancelled, and reopens it whenever it breaks: the watch must outlast the mesh's failures."""
    failures = 0
    while True:
        began_s = time.monotonic()
        try:
            await work()
        except grpc.aio.AioRpcError as error:
            if not may_succeed_later(error):
                logger().error("stream_refused", stream=what, reason=of_rpc(error).message)
        failures = 0 if time.monotonic() - began_s > RETRY.last_s else failures + 1
        await asyncio.sleep(RETRY.delay_s(failures))


class CanaryWatch:
    """Sends and observes the canaries of one mesh, and pages."""

    def __init__(self, clients: Clients, folder: Path, pagers: Sequence[Pager], *, say: Callable[[str], None]) -> None:
        self._mesh = clients.mesh
        self._pagers = pagers
        self._say = say
        self._series = CanarySeries(clients, folder)
        self._sender = CanarySender(self._series)
        self._observer = CanaryObserver(clients, self._series)

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._judge())
            tasks.create_task(self._sender.prolong())
            tasks.create_task(self._sender.send())
            tasks.create_task(self._observer.run())

    async def _judge(self) -> None:
        """Judges the canaries every second, and pages until a pager has delivered."""
        series = self._series
        while True:
            before, now_ms = series.state.outage, series.now_ms()
            page = canary.judge(series.state, series.now_s(), now_ms)
            if series.state.outage != before:
                series.save()
            if page is not None:
                silent = () if page.kind is PageKind.BACK else await monitoring.not_answering(self._mesh)
                message = message_of(page, series.exercise.exercise_id, silent, now_ms=now_ms)
                self._say(message.text)
                logger().critical(
                    "canary_" + page.kind.lower(), last_seen=message.last_seen, outage_id=message.outage_id
                )
                if not self._pagers or await page_all(self._pagers, message):
                    canary.delivered(series.state, page, series.now_ms())
                    series.save()
            await series.sleep(CHECK_INTERVAL_S)


def message_of(page: Page, exercise_id: str, silent: tuple[str, ...], *, now_ms: int) -> PageMessage:
    """The message of a page. `silent` are the processes that don't answer, `now_ms` is mesh time."""
    outage = page.outage
    since = f"{times.korean_date_time(outage.since_ms)} Korean time"  # as the consoles show it
    if page.kind is PageKind.BACK:
        lasted_s = ((outage.over_ms or now_ms) - outage.since_ms) // 1000
        text = f"Tandem: canaries come through again; they were missing from {since} for {lasted_s} s"
    else:
        lasted_s = (now_ms - outage.since_ms) // 1000
        text = f"Tandem: canaries have been missing since {since} ({lasted_s} s). Last seen: {outage.seen}."
        text += f" Not answering: {', '.join(silent)}." if silent else " All parts answer."
    outage_id = hash_id("outage", exercise_id, outage.since_ms)
    return PageMessage(
        id=hash_id("page", outage_id, page.kind.value, outage.pages),
        kind=page.kind.value,
        text=text,
        outage_id=outage_id,
        since=times.to_rfc3339(outage.since_ms),
        last_seen=outage.seen,
        not_answering=silent,
    )


RUNBOOK = "docs/how-to/respond/a-page-of-tandem-watch.md"
"""Page of the documents that says what to do, as the alert rules name theirs."""
PAGER_WITHIN_S = 10.0
"""Timeout of a pager, seconds."""


@dataclass(frozen=True, slots=True)
class PageMessage:
    """The message to the person on call, without the name of a wearer or protected person."""

    id: str
    """Id of the page, the same for each try."""
    kind: str
    """Kind of the page: MISSING, STILL_MISSING or BACK, or TEST where somebody tries the pager."""
    text: str
    """The message as one line, fit for SMS."""
    outage_id: str
    """Id of the outage, the same for all its pages."""
    since: str
    """Time when the first missing canary was sent, RFC 3339."""
    last_seen: str
    """Progress of the newest canary that could have come further, in words."""
    not_answering: tuple[str, ...]
    """Processes of the mesh whose health check fails."""
    runbook: str = RUNBOOK
    """Page of the documents that says what to do."""

    def to_json(self) -> bytes:
        """The JSON that pagers receive."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()


class PageFailed(Exception):
    """A pager didn't deliver the message. The reason may be logged."""


class Pager(Protocol):
    """A channel for pages."""

    name: str

    async def page(self, message: PageMessage) -> None:
        """Returns once the message was accepted. Raises PageFailed."""


class CommandPager:
    """Pages by a program: the message is JSON on its standard input, and exit code 0 means that it was accepted."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self.name = Path(self._command[0]).name

    async def page(self, message: PageMessage) -> None:
        """Runs the program, see Pager.page."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise PageFailed(f"{type(error).__name__} {error.errno}") from None
        try:
            async with asyncio.timeout(PAGER_WITHIN_S):
                await process.communicate(message.to_json() + b"\n")
        except TimeoutError:
            raise PageFailed(f"didn't end within {PAGER_WITHIN_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise PageFailed(f"exit code {process.returncode}")


class WebhookPager:
    """Pages by a webhook, signed like the webhooks of a leg."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.name = receiver.name

    async def page(self, message: PageMessage) -> None:
        """Posts the message, see Pager.page."""
        async with open_session() as session:
            reason = await post(
                session, self._receiver, message.id, body=message.to_json(), content_type="application/json"
            )
        if reason:
            raise PageFailed(reason)


def pagers(command: Sequence[str], webhooks: Path | None) -> list[Pager]:
    """The configured pagers. Raises CommandFailed if the file of webhooks is unusable."""
    configured: list[Pager] = [CommandPager(command)] if command else []
    if webhooks is not None:
        try:
            configured += map(WebhookPager, receivers.read(webhooks))
        except FailedPrecondition as error:
            raise CommandFailed(error.reason, MISUSED) from None
    return configured


async def page_all(pagers: Sequence[Pager], message: PageMessage) -> bool:
    """Tries all pagers concurrently. Returns whether at least one delivered the message."""

    async def deliver(pager: Pager) -> bool:
        try:
            await pager.page(message)
        except PageFailed as failed:
            logger().critical("page_failed", pager=pager.name, page_id=message.id, reason=str(failed))
            return False
        logger().info("page_delivered", pager=pager.name, page_id=message.id)
        return True

    return any(await asyncio.gather(*map(deliver, pagers)))


def trial_message(now_ms: int) -> PageMessage:
    """A page of the kind TEST, by which people see that a pager works. `now_ms` is wall time, milliseconds since 1970 UTC."""
    return PageMessage(
        id=hash_id("page", "test", now_ms),
        kind="TEST",
        text="Tandem: this is a test of the pager; nothing is wrong",
        outage_id="",
        since=times.to_rfc3339(now_ms),
        last_seen="",
        not_answering=(),
    )
