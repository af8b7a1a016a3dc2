"""What a live page shows of the mesh: incidents, alerts, targets, units, match reviews and devices, each by a reader of its own.

A source that ends is read again, and the page says which sources aren't connected. Some are read only while a browser views the page,
so that positions are shared only when needed. Another agency's roster is never shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import grpc.aio

from services.common.alert_phases import AlertPhase
from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain import units
from services.console.domain.devices import WatchedDevice
from services.console.domain.live_page import MAX_INCIDENTS, Item, LivePage
from services.console.domain.match_reviews import WaitingReviews
from services.console.domain.people import DESKS, SELF, ConsoleUser, Role
from services.console.mesh import MeshClient
from services.console.pages import match_reviews
from services.console.pages.devices import DeviceReader
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2, roster_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.registry.v1 import match_review_pb2

RETRY_DELAY_S = 0.5
CONNECTED_AFTER_S = 1.0
UNABLE_AFTER_S = 10.0


class Sources:
    """Connections of one role's page to its sources."""

    def __init__(self, role: Role, names: Iterable[str], notify: Callable[[], None]) -> None:
        self._role, self._notify = role, notify
        self._away: dict[str, str] = dict.fromkeys(names, "STARTING")
        """Reason why each source isn't connected; empty for a connected source."""
        self._away_since_s = dict.fromkeys(self._away, time.monotonic())

    async def keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Restarts the reading of a source whenever it ends. A silent stream counts as connected after CONNECTED_AFTER_S."""
        while True:
            reason = "ended"
            connected_timer = asyncio.get_running_loop().call_later(CONNECTED_AFTER_S, self.connected, name)
            try:
                await work()
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            connected_timer.cancel()
            self._set(name, reason)
            await asyncio.sleep(RETRY_DELAY_S)

    def connected(self, name: str) -> None:
        """Notes that a source answers."""
        self._set(name, "")

    def away(self) -> dict[str, str]:
        """Returns the sources that aren't connected, with the reasons."""
        return {name: reason for name, reason in self._away.items() if reason}

    def unable(self, *, without: Collection[str] = ()) -> str:
        """Returns the sources that couldn't be read for UNABLE_AFTER_S, except for those in `without`, or an empty text."""
        long_before_s = time.monotonic() - UNABLE_AFTER_S
        names = [name for name in self.away() if name not in without and self._away_since_s[name] < long_before_s]
        return f"{', '.join(names)} can't be read" if names else ""

    def _set(self, name: str, reason: str) -> None:
        if self._away[name] != reason:
            logger().info("feed", role=self._role.value, what=name, away=reason)
            if not self._away[name]:
                self._away_since_s[name] = time.monotonic()
            self._away[name] = reason
            self._notify()


class Viewers:
    """Count of the browsers that view a page."""

    def __init__(self) -> None:
        self._count = 0
        self._came = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._count)

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Counts a browser that views the page."""
        self._count += 1
        self._came.set()
        try:
            yield
        finally:
            self._count -= 1

    async def next(self, within_s: float) -> None:
        """Returns when the next browser comes, or after `within_s`."""
        await next_set(self._came, within_s)


async def next_set(event: asyncio.Event, within_s: float) -> None:
    """Returns when the event is set the next time, or after `within_s`."""
    event.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()


LISTS_INTERVAL_S = 10.0
"""Interval at which a desk's page reads the changes of the list in addition to the stream of steps, in s."""
CHANGES_INTERVAL_S = 2.0
"""Interval at which the changes are read while a reviewer views the page, in s: reviewers have no stream of steps."""
PAGE_SIZE = 100
"""Number of incidents in an answer: the most that a leg gives."""
REGROUP_DELAY_S = 0.5
DEADLINE_S = 5.0


class IncidentReader:
    """Keeps the incidents of a page current from the role's leg."""

    def __init__(
        self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers, connected: Callable[[], None]
    ) -> None:
        self._mesh = mesh
        self._role = role
        self._page = page
        self._viewers, self._connected = viewers, connected
        self._dispatch = mesh.leg_of(role).dispatch
        self._regroup = asyncio.Event()
        self._applied: dict[str, int] = {}
        """Number of the last step that was applied since the list was read, by assignment id."""
        self._changes = ""
        """Point of the leg's changes up to which the page is current; empty before the whole list was read."""
        self._stepped: dict[str, None] = {}
        """Incidents of which a step came after the list was last requested: the step is newer than the list."""

    async def poll(self) -> None:
        """Reads the list of incidents: once the whole list, then what changed. Reviewers have no other source. For desks, the changes
        replace steps that the stream missed."""
        began_s = asyncio.get_running_loop().time()
        while True:
            await self._read_changes()
            self._connected()
            is_new = asyncio.get_running_loop().time() - began_s < LISTS_INTERVAL_S
            if self._role in DESKS:
                await asyncio.sleep(CHANGES_INTERVAL_S if is_new else LISTS_INTERVAL_S)
            else:
                await self._viewers.next(CHANGES_INTERVAL_S if is_new or self._viewers else LISTS_INTERVAL_S)

    async def _read_changes(self) -> None:
        """Reads the incidents that changed since the last answer, or the whole list if the leg doesn't know them."""
        self._stepped.clear()
        has_more = bool(self._changes)
        while has_more:
            answer = await self._list(
                dispatch_pb2.ListIncidentsRequest(changed_after=self._changes, page_size=PAGE_SIZE)
            )
            self._put(answer)
            self._changes, has_more = answer.changes, answer.more_changes
        if not self._changes:
            await self._read_all()

    async def _read_all(self) -> None:
        """Reads the whole list: the newest incidents that the page keeps, and all older ones that are open."""
        gone = set(self._page.incident_ids)
        changes = ""
        read = 0
        answer: dispatch_pb2.ListIncidentsResponse | None = None
        while answer is None or answer.next_page_token:
            answer = await self._list(
                dispatch_pb2.ListIncidentsRequest(
                    page_size=PAGE_SIZE,
                    page_token=answer.next_page_token if answer else "",
                    only_open=read >= MAX_INCIDENTS,
                )
            )
            changes = changes or answer.changes
            read += len(answer.incidents)
            gone.difference_update(incident.incident_id for incident in answer.incidents)
            self._put(answer)
        self._page.drop_incidents(gone - self._stepped.keys())
        self._changes = changes

    def _put(self, answer: dispatch_pb2.ListIncidentsResponse) -> None:
        for incident in answer.incidents:
            if incident.incident_id not in self._stepped:
                self._page.put_incident(translate.incident(incident))
        if answer.incidents:
            self._applied.clear()
            self._page.regroup()

    async def follow(self) -> None:
        """Follows a desk's stream of steps."""
        request = dispatch_pb2.SubscribeRequest(others=True, new_only=True)
        steps = self._dispatch.Subscribe(request, metadata=self._mesh.own_identity(self._role))
        try:
            async for message in steps:
                own = message.HasField("step")
                if own and self._is_known(message):
                    continue
                await self._apply(message, is_own=own)
                is_new = own and self._role is Role.PROBATION and message.sequence
                if is_new and (notice := translate.notice(message.step)):
                    self._page.add_alert(notice)
        finally:
            steps.cancel()

    def _is_known(self, message: dispatch_pb2.SubscribeResponse) -> bool:
        """Whether the page shows a step already. The leg sends each unanswered offer again every 5 s, as a step without a sequence."""
        assignment_id, number = message.step.assignment.assignment_id, message.step.number
        is_known = not message.sequence and self._applied.get(assignment_id) == number
        self._applied[assignment_id] = number
        return is_known

    async def group(self) -> None:
        """Regroups the incidents after steps, at intervals and not at each step of a flood."""
        while True:
            await self._regroup.wait()
            await asyncio.sleep(REGROUP_DELAY_S)
            self._regroup.clear()
            self._page.regroup()

    async def _apply(self, message: dispatch_pb2.SubscribeResponse, *, is_own: bool) -> None:
        changed = translate.assignment(message.step.assignment if is_own else message.other)
        self._stepped[changed.incident_id] = None
        if self._page.assign(changed, translate.incident_times(message), is_own=is_own):
            answer = await self._list(dispatch_pb2.ListIncidentsRequest(incident_id=changed.incident_id))
            for incident in answer.incidents:
                self._page.put_incident(translate.incident(incident))
        self._regroup.set()

    async def _list(self, request: dispatch_pb2.ListIncidentsRequest) -> dispatch_pb2.ListIncidentsResponse:
        return await self._dispatch.ListIncidents(
            request, metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S
        )


async def follow_alerts(mesh: MeshClient, role: Role, page: LivePage) -> None:
    """Adds new alerts to the page until the stream ends. Canaries aren't shown. Raises AioRpcError."""
    alerts = mesh.geofence.WatchAlerts(geofence_pb2.WatchAlertsRequest(new_only=True), metadata=mesh.own_identity(role))
    try:
        async for message in alerts:
            if message.alert.exercise != exercise_pb2.CANARY:
                page.add_alert(translate.alert(message))
    finally:
        alerts.cancel()


MAX_FOLLOWED = 200
"""Maximum number of incidents whose targets are followed; the most urgent come first."""
TARGETS_INTERVAL_S = 0.5
TARGETS_RETRY_DELAY_S = 2.0


class TargetReader:
    """Follows the targets of the leg's incidents that demand a response, over one stream."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers) -> None:
        self._mesh = mesh
        self._role = role
        self._page = page
        self._viewers = viewers
        self._followed: dict[str, None] = {}
        """Incidents whose targets the page shows."""
        self._asked: set[str] = set()
        """Incidents that the leg was asked for over the present stream."""
        self._refused: dict[str, float] = {}
        """Incidents that the leg doesn't follow, with the time of the next request, seconds of the event loop's clock."""

    async def run(self) -> None:
        """Follows targets until cancelled."""
        while True:
            while not self._viewers or not self._wanted():
                await self._viewers.next(TARGETS_INTERVAL_S)
            await self._follow()
            await asyncio.sleep(TARGETS_RETRY_DELAY_S)

    def _wanted(self) -> list[str]:
        return self._page.responding(self._followed, MAX_FOLLOWED) if self._viewers else []

    async def _follow(self) -> None:
        """Follows over one stream until it breaks, or until nobody views the page."""
        targets = self._mesh.leg_of(self._role).following.FollowTargets(metadata=self._mesh.own_identity(self._role))
        reading = asyncio.create_task(self._read(targets))
        try:
            while not reading.done() and self._viewers:
                if request := self._changes():
                    await targets.write(request)
                await asyncio.wait([reading], timeout=TARGETS_INTERVAL_S)
            if reading.done():
                await reading
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "BROKEN"
            logger().info("targets_not_followed", role=self._role.value, code=code)
        finally:
            targets.cancel()
            reading.cancel()
            if not self._viewers:
                self._keep([])
            self._asked.clear()
            self._refused.clear()

    def _changes(self) -> following_pb2.FollowTargetsRequest | None:
        """The incidents to add and to remove now; None if there are none."""
        now_s, wanted = asyncio.get_running_loop().time(), self._wanted()
        self._keep(wanted)
        removes = self._asked.difference(wanted)
        adds = [id_ for id_ in wanted if id_ not in self._asked and self._refused.get(id_, now_s) <= now_s]
        self._asked = self._asked.difference(removes).union(adds)
        if not adds and not removes:
            return None
        return following_pb2.FollowTargetsRequest(remove_incident_ids=removes, add_incident_ids=adds)

    def _keep(self, wanted: Iterable[str]) -> None:
        """Shows the targets of these incidents and no others."""
        kept = dict.fromkeys(wanted)
        for incident_id in self._followed.keys() - kept.keys():
            self._page.drop_targets(incident_id)
        self._followed = kept

    async def _read(self, targets: Any) -> None:
        async for message in targets:
            for event in message.events:
                if event.incident_id not in self._asked:
                    continue
                if event.HasField("target"):
                    self._page.put_target(event.incident_id, translate.target(event.incident_id, event.target))
                else:
                    self._asked.remove(event.incident_id)
                    self._refused[event.incident_id] = asyncio.get_running_loop().time() + TARGETS_RETRY_DELAY_S


RECEIPTS_INTERVAL_S = 0.5
_NOT_NEEDED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
"""Answers to a receipt of an offer that has ended or changed meanwhile."""


class OfferReceipts:
    """Confirms each offer of a page to its leg, once, while a browser views the live page or the bar of another page."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Collection[Viewers]) -> None:
        self._mesh = mesh
        self._role = role
        self._page = page
        self._viewers = viewers

    async def run(self) -> None:
        """Confirms offers until cancelled."""
        confirmed: dict[str, int] = {}
        while True:
            waiting = {to.assignment_id: to.offer_number for to in self._page.offers_of(self._role.leg)}
            confirmed = {id_: number for id_, number in confirmed.items() if id_ in waiting}
            if any(self._viewers):
                for id_, number in waiting.items():
                    if confirmed.get(id_) != number and await self._confirm(id_, number):
                        confirmed[id_] = number
            await asyncio.sleep(RECEIPTS_INTERVAL_S)

    async def _confirm(self, assignment_id: str, number: int) -> bool:
        """Confirms an offer. Returns whether the offer is confirmed or needs no receipt any more."""
        request = dispatch_pb2.ReceiveRequest(assignment_id=assignment_id, offer_number=number)
        dispatch = self._mesh.leg_of(self._role).dispatch
        try:
            await dispatch.Receive(request, metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            logger().info("offer_not_received", assignment_id=assignment_id, code=error.code().name)
            return error.code() in _NOT_NEEDED
        return True


UNITS_INTERVAL_S = 3.0


class UnitReader:
    """Keeps the units of a desk's page current."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers) -> None:
        self._mesh = mesh
        self._role = role
        self._page = page
        self._viewers = viewers

    async def run(self) -> None:
        """Reads the units until cancelled."""
        while True:
            try:
                self._page.replace_units(await self._read() if self._viewers else {})
            except grpc.aio.AioRpcError as error:
                logger().info("units_not_read", role=self._role.value, code=error.code().name)
                # Keep the last positions, marked as unknown: an empty map would suggest that nobody is on duty.
                self._page.replace_units({id_: unit | {"unknown": True} for id_, unit in self._page.units().items()})
            await asyncio.sleep(UNITS_INTERVAL_S)

    async def _read(self) -> Mapping[str, Item]:
        task_of = units.tasks(self._page.assignments_of(self._role.leg))
        answer = await self._mesh.leg_of(self._role).roster.ListUnits(
            roster_pb2.ListUnitsRequest(), metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S
        )
        now_ms = self._mesh.clock.now_ms()
        known = (translate.unit(unit) for unit in answer.units)
        all_ = (units.unit_as_json(unit, task_of, now_ms) for unit in known if unit)
        return {unit["id"]: unit for unit in all_ if unit}


REVIEWS_INTERVAL_S = 2.0
"""Interval at which the registry is asked while a browser views the page, in s."""
IDLE_REVIEWS_INTERVAL_S = 10.0
"""The same interval while nobody does: other pages show the badge, too."""


class ReviewReader:
    """Keeps the number of waiting match reviews current."""

    def __init__(
        self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers, connected: Callable[[], None]
    ) -> None:
        self._mesh = mesh
        self._role = role
        self._page = page
        self._viewers, self._connected = viewers, connected
        self.waiting: WaitingReviews | None = None
        """The reviews as last read; None while the registry doesn't answer."""

    async def poll(self) -> None:
        """Asks the registry until it doesn't answer. Raises AioRpcError."""
        while True:
            self._set(await self._read())
            self._connected()
            await self._viewers.next(REVIEWS_INTERVAL_S if self._viewers else IDLE_REVIEWS_INTERVAL_S)

    async def _read(self) -> WaitingReviews:
        request = match_review_pb2.GetReviewQueueRequest()
        try:
            answer = await self._mesh.match_reviews.GetReviewQueue(
                request, metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S
            )
        except grpc.aio.AioRpcError:
            self._set(None)  # an old number would suggest that nothing new waits
            raise
        return match_reviews.waiting_reviews(answer)

    def _set(self, waiting: WaitingReviews | None) -> None:
        if waiting != self.waiting:
            self.waiting = waiting
            self._page.count_change()


DEVICES_INTERVAL_S = 10.0
LOW_BATTERY, LOCATION_OFF = "LOW_BATTERY", "PHONE_LOCATION_OFF"


class DeviceTrouble(NamedTuple):
    """A trouble of a device of which its desk is notified once, until it is over."""

    device_id: str
    kind: str


class DeviceNotices:
    """Counts the devices in trouble for the live page, and adds a notice for each device whose battery became low and each phone whose
    app lost its location."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage) -> None:
        self._reader = DeviceReader(mesh)
        self._clock = mesh.clock
        self._role = role
        self._page = page
        self._known: set[DeviceTrouble] = set()
        """Troubles that have a notice."""
        self.count: int | None = None
        """Number of devices in trouble; None while it isn't known."""

    async def run(self) -> None:
        """Checks the devices until cancelled. While a service is away, no trouble counts as over."""
        while True:
            away: list[str] = []
            devices = await self._reader.in_trouble(ConsoleUser(self._role, SELF), away)
            if away:
                logger().info("batteries_not_read", role=self._role.value, away=away)
            self.put(devices or [], is_complete=not away)
            self._set_count(None if away else len(devices or []))
            await asyncio.sleep(DEVICES_INTERVAL_S)

    def put(self, devices: list[WatchedDevice], *, is_complete: bool) -> None:
        """Adds notices of troubles that weren't there before, and forgets those that are over."""
        found = {DeviceTrouble(device.device_id, kind): device for device in devices for kind in _kinds(device)}
        for trouble in found.keys() - self._known:
            self._page.add_alert(_device_notice(found[trouble], trouble.kind, self._clock.now_ms()))
        self._known = set(found) if is_complete else self._known | set(found)

    def _set_count(self, count: int | None) -> None:
        if count != self.count:
            self.count = count
            self._page.count_change()


def _kinds(device: WatchedDevice) -> Iterator[str]:
    if device.is_low:
        yield LOW_BATTERY
    if device.location_trouble:
        yield LOCATION_OFF


def _device_notice(device: WatchedDevice, kind: str, now_ms: int) -> Item:
    """A notice in the form of an alert of the live page. It belongs to no incident, so it makes no sound."""
    battery = device.battery if kind == LOW_BATTERY else None
    return {
        "id": f"{'battery' if kind == LOW_BATTERY else 'location'}-{device.device_id}-{now_ms}",
        "at": now_ms,
        "decided": now_ms,
        "kind": kind,
        "phase": AlertPhase.BEGUN.value,
        "demand": "NOTIFY",
        "device": device.device_id,
        "charge": battery.charge_pct if battery else None,
        "empty": battery.empty_ms if battery else None,
        "incident": "",
        "order": "",
        "wearer": device.subject_id,
        "target": "",
        "ring": 0,
        "outage": "",
        "distance": None,
        "exercise": False,
    }
