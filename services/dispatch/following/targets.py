"""Live positions of targets, from one stream to each evaluator, over which all shares of a leg are opened, followed and ended.

Each target is a share at one evaluator. A leg opens a stream to each evaluator, since each may have incidents that the others don't
have. If the evaluator refuses the share, another one may have the incident. If all refuse it, or the share ended, it is retried after
growing delays, and at once when there is news of its incident. Positions are kept in memory only.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import math
import random
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import grpc.aio
from google.rpc import code_pb2

from services.common import times
from services.common.clock import MeshClock
from services.common.geometry import LatLon
from services.common.messaging.permissions import SERVICE
from services.common.observability.outages import WORKS_AFTER_S, Outages
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.common.rpc import client, server
from services.common.settings import addresses_of
from services.dispatch.domain.following import PACE_OVER_MS, Sighting
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.availability import LastKnownPositions
from services.dispatch.metrics import FollowingMetrics
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import subject_pb2
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc

FOLLOWING_BASES = {Leg.PROBATION: "TAG_16_2", Leg.POLICE: "TAG_DECREE_23_10"}
"""Legal basis, by leg, for following a target during an incident. Probation: the Ministry's own use of its tags' data.
Police: the notification of a breach or of the risk of a breach."""
CALLERS = {leg: f"{SERVICE}dispatch-{leg}" for leg in FOLLOWING_BASES}
"""Identity of each leg towards other services. A leg shows no more than its desk may see."""
SHARED_FOR_MS = 3_600_000
"""Lifetime of a requested share, milliseconds of mesh time."""
RETRY = Backoff(0.2, 300.0)
"""Delays before a refused share is requested again, seconds of wall time. The first ones are short: an evaluator may not have read the
log as far as the leg has read the alerts. The last ones are long: the incident may be over for the evaluators while a desk keeps it
open, and an alert would be news of it."""
RETRY_UNAVAILABLE = Backoff(0.2, 5.0)
"""Delays in place of RETRY, if an evaluator was behind the log or couldn't write. It may be well again at any time."""
ENDED_RETRIES = 5
"""Number of retries for which a share that ended counts, so that the next request comes after some 6 s."""
RESOLVE_INTERVAL_S = 30.0
"""Interval at which the evaluators' addresses are looked up, seconds."""


class Targets:
    """Targets of one leg, each with a share at an evaluator."""

    def __init__(
        self, settings: DispatchSettings, last_known_positions: LastKnownPositions, metrics: FollowingMetrics
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._clock: MeshClock = settings.clock
        self._last_known_positions = last_known_positions
        self._basis, self._caller = FOLLOWING_BASES[settings.leg], CALLERS[settings.leg]
        self._targets: dict[str, dict[TargetKey, FollowedTarget]] = {}
        self._by_number: dict[int, TargetKey] = {}
        self._streams: dict[EvaluatorEndpoint, EvaluatorStream] = {}
        self._numbers = count(1)
        self._refusals = Outages("target_refused", "target_accepted")
        self._on_changed: list[Callable[[str], None]] = []

    # ── for the follower and the desks ───────────────────────────────────────────────────────────────────────────────

    def of(self, incident_id: str) -> Mapping[TargetKey, FollowedTarget]:
        """Returns the targets of an incident."""
        return self._targets.get(incident_id, {})

    def get(self, key: TargetKey) -> FollowedTarget | None:
        """Returns a target; None if it isn't followed."""
        return self._targets.get(key.incident_id, {}).get(key)

    def on_changed(self, listener: Callable[[str], None]) -> None:
        """Has a function called with the id of each incident whose targets changed."""
        self._on_changed.append(listener)

    def want(self, incident_id: str, keys: Collection[TargetKey]) -> None:
        """Follows these targets of an incident and no others. Call it when there is news of the incident."""
        targets = self._targets.setdefault(incident_id, {})
        for key in targets.keys() - keys:
            self._release(targets.pop(key))
            self._changed(incident_id)
        for key in keys:
            target = targets.setdefault(key, FollowedTarget())
            if target.retry is not None:
                target.failures = 0
            if target.stream is None:
                self._request(key, target)
        if not targets:
            del self._targets[incident_id]
            self._refusals.forget({"incident_id": incident_id})

    async def run(self) -> None:
        """Keeps a stream open to each evaluator, until cancelled."""
        running: dict[EvaluatorEndpoint, asyncio.Task[None]] = {}
        changed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            while True:
                changed.clear()
                endpoints = await self._endpoints()
                for endpoint in running.keys() - endpoints:
                    running.pop(endpoint).cancel()
                    self.on_away(self._streams.pop(endpoint))
                for endpoint in endpoints - running.keys():
                    stream = self._streams[endpoint] = EvaluatorStream(
                        endpoint, self._settings, self._caller, metrics=self._metrics, targets=self
                    )
                    running[endpoint] = tasks.create_task(stream.run(changed.set))
                with suppress(TimeoutError):
                    async with asyncio.timeout(RESOLVE_INTERVAL_S):
                        await changed.wait()
                await asyncio.sleep(1.0)  # streams that keep breaking must not cause a look-up each

    async def _endpoints(self) -> set[EvaluatorEndpoint]:
        try:
            return await resolve(self._settings.geofence)
        except OSError as error:
            logger().warning("evaluators_unresolved", reason=str(error))
            return set(self._streams)

    # ── from the streams ─────────────────────────────────────────────────────────────────────────────────────────────

    def on_connected(self, stream: EvaluatorStream) -> None:
        """Requests the shares that this evaluator had, and those that no evaluator has."""
        for targets in self._targets.values():
            for key, target in targets.items():
                target.refused_by.discard(stream.endpoint)
                if target.stream is stream or (target.stream is None and target.retry is None):
                    self._request_from(stream, key, target)

    def on_broken(self, stream: EvaluatorStream) -> None:
        """Keeps the shares of a broken stream with its evaluator, which continues them if the stream is reopened soon."""
        for key, target in self._shares_at(stream):
            self._by_number.pop(target.number, None)
            self._interrupt(key, target)

    def on_away(self, stream: EvaluatorStream) -> None:
        """Requests the shares of an evaluator that can't be reached from other evaluators."""
        for key, target in self._shares_at(stream):
            self._release(target)
            self._interrupt(key, target)
            self._request(key, target)

    def on_event(self, event: positions_pb2.ShareEvent) -> None:
        """Applies an event of a share. Events of shares that were removed meanwhile have no effect."""
        key = self._by_number.get(event.number)
        target = self.get(key) if key else None
        if key is None or target is None:
            return
        match event.WhichOneof("what"):
            case "position":
                self._accept(key, target, event.position)
            case "refused":
                self._refused(key, target, event.refused)
            case "end":
                self._ended(key, target, event.end.reason)
            case _:
                pass  # opened: the first position follows

    def _accept(self, key: TargetKey, target: FollowedTarget, position: positions_pb2.LivePosition) -> None:
        self._refusals.succeeded({"incident_id": key.incident_id}, WORKS_AFTER_S)
        if (located := target.put(position)) is not None:
            point, at_ms = located
            self._last_known_positions.put(key.subject_id, point, at_ms)
        self._changed(key.incident_id)

    def _refused(self, key: TargetKey, target: FollowedTarget, refusal: positions_pb2.ShareRefused) -> None:
        code = code_pb2.Code.Name(refusal.code)
        self._metrics.shares_refused.labels(code).inc()
        self._refusals.failed({"incident_id": key.incident_id}, f"{code}: {refusal.reason}", logging.WARNING)
        target.is_unavailable |= refusal.code == code_pb2.UNAVAILABLE
        if target.stream is not None:
            target.refused_by.add(target.stream.endpoint)
        self._forget_share(target)
        self._interrupt(key, target)
        self._request(key, target)

    def _ended(self, key: TargetKey, target: FollowedTarget, reason: positions_pb2.ShareEndReason.ValueType) -> None:
        self._forget_share(target)
        if reason == positions_pb2.EXPIRED:
            self._request(key, target)
            return
        self._interrupt(key, target)
        target.failures = max(target.failures, ENDED_RETRIES)
        self._retry_later(key, target)

    # ── shares ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _request(self, key: TargetKey, target: FollowedTarget) -> None:
        """Requests a share from an evaluator that hasn't refused it. If all have, retries later. If none is connected, `on_connected`
        requests it."""
        connected = [stream for stream in self._streams.values() if stream.is_connected]
        willing = [stream for stream in connected if stream.endpoint not in target.refused_by]
        if willing:
            self._request_from(max(willing, key=lambda stream: _rank(key.incident_id, stream.endpoint)), key, target)
        elif connected:
            self._retry_later(key, target)

    def _request_from(self, stream: EvaluatorStream, key: TargetKey, target: FollowedTarget) -> None:
        now_ms = self._clock.now_ms()
        # A share that is requested with the same end after its stream broke continues at the evaluator.
        if target.stream is not stream or target.expires_at_ms <= now_ms:
            target.expires_at_ms = now_ms + SHARED_FOR_MS
        target.cancel_retry()
        target.stream, target.number = stream, next(self._numbers)
        self._by_number[target.number] = key
        stream.add(
            positions_pb2.ShareRequest(
                number=target.number,
                incident_id=key.incident_id,
                legal_basis=self._basis,
                subject=positions_pb2.Subject(kind=key.kind, subject_id=key.subject_id),
                expires_at=times.to_timestamp(target.expires_at_ms),
            )
        )

    def _retry_later(self, key: TargetKey, target: FollowedTarget) -> None:
        backoff = RETRY_UNAVAILABLE if target.is_unavailable else RETRY
        target.request_later(backoff, partial(self._request, key, target))

    def _release(self, target: FollowedTarget) -> None:
        """Ends the share of a target, if it has one."""
        target.cancel_retry()
        if target.stream is not None:
            target.stream.remove(target.number)
        self._forget_share(target)

    def _forget_share(self, target: FollowedTarget) -> None:
        self._by_number.pop(target.number, None)
        target.stream, target.expires_at_ms = None, 0

    def _interrupt(self, key: TargetKey, target: FollowedTarget) -> None:
        if not target.interrupted:
            target.interrupted = True
            self._changed(key.incident_id)

    def _shares_at(self, stream: EvaluatorStream) -> list[tuple[TargetKey, FollowedTarget]]:
        all_ = (item for targets in self._targets.values() for item in targets.items())
        return [(key, target) for key, target in all_ if target.stream is stream]

    def _changed(self, incident_id: str) -> None:
        for listener in self._on_changed:
            listener(incident_id)


def _rank(incident_id: str, endpoint: EvaluatorEndpoint) -> bytes:
    """Rank of an evaluator for an incident, so that the incidents spread evenly over the evaluators."""
    return hashlib.blake2b(f"{incident_id} {endpoint.address}".encode(), digest_size=8).digest()


class TargetKey(NamedTuple):
    """Key of a target. It has the incident too, since the same person may be the target in several incidents."""

    incident_id: str
    kind: subject_pb2.SubjectKind.ValueType
    subject_id: str


@dataclass(slots=True)
class FollowedTarget:
    """A target with its last position and recent track."""

    position: positions_pb2.LivePosition | None = None
    interrupted: bool = True
    """Whether no positions arrive at present, since the share isn't open yet, or its stream broke."""
    track: deque[Sighting] = field(default_factory=deque)
    """Positions of the last minute, mesh time."""
    expires_at_ms: int = 0
    """End of the requested share, mesh time; 0 if none was requested."""
    stream: EvaluatorStream | None = None
    """Stream to the evaluator that the share was requested from."""
    number: int = 0
    """Number of the share."""
    refused_by: set[EvaluatorEndpoint] = field(default_factory=set)
    """Evaluators that refused the share in this round."""
    is_unavailable: bool = False
    """Whether an evaluator refused it as UNAVAILABLE in this round."""
    failures: int = 0
    """Number of rounds through all evaluators without a position."""
    retry: asyncio.TimerHandle | None = None

    def put(self, position: positions_pb2.LivePosition) -> tuple[LatLon, int | None] | None:
        """Applies a position. Returns its point and time, mesh time (None for a place), if the position is known."""
        self.position = position
        self.interrupted = False
        self.failures = 0
        self.refused_by.clear()
        if not position.HasField("lat_deg"):
            return None
        point = LatLon(position.lat_deg, position.lon_deg)
        at_ms = times.from_timestamp(position.fix_time) if position.HasField("fix_time") else None
        if at_ms is not None and (not self.track or at_ms > self.track[-1].at_ms):
            self.track.append(Sighting(at_ms, point))
            while self.track[0].at_ms < at_ms - PACE_OVER_MS:
                self.track.popleft()
        return point, at_ms

    def request_later(self, backoff: Backoff, request: Callable[[], None]) -> None:
        """Calls `request` after the next delay of a backoff, and begins a new round through the evaluators."""
        self.cancel_retry()
        self.refused_by.clear()
        self.is_unavailable = False
        # Add jitter, so that the shares of an evaluator that stopped aren't requested all at once.
        delay_s = backoff.delay_s(self.failures) * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
        self.failures += 1

        def retry() -> None:
            self.retry = None
            request()

        self.retry = asyncio.get_running_loop().call_later(delay_s, retry)

    def cancel_retry(self) -> None:
        """Cancels the next retry, if there is one."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None


RECONNECT = Backoff(0.2, 5.0)
"""Delays before a stream is reopened, seconds of wall time."""
AT_ONCE_S = 0.2
"""Maximum delay before a stream that worked is reopened the first time, seconds. It is shorter than the evaluator waits before it ends
the shares of a broken stream."""
CONNECT_TIMEOUT_S = 2.0
"""Time within which an evaluator must answer a new stream, seconds."""
STREAM_WORKS_AFTER_S = 1.0
"""Time after which a stream counts as working although nothing arrived, seconds."""
REQUEST_DELAY_S = 0.05
"""Time for which changes of shares are collected after the first one, seconds. An offer and the alerts that follow it change the shares
several times, and the offers of all legs go first."""
_OUTAGES = Outages("target_stream_broke", "target_stream_works")
CHANGES_PER_REQUEST = 500
"""Maximum number of shares that a request adds, and of shares that it removes."""
NEWEST_FIRST = (("grpc.http2.lookahead_bytes", 256), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
"""Options of a gRPC channel. Buffers are small, so that a slow reader gets the newest positions. Channels share no connection."""


class EvaluatorStream:
    """Stream to one evaluator, reopened when it breaks."""

    def __init__(
        self,
        endpoint: EvaluatorEndpoint,
        settings: DispatchSettings,
        caller: str,
        *,
        metrics: FollowingMetrics,
        targets: Targets,
    ) -> None:
        self.endpoint = endpoint
        self.is_connected = False
        self._settings, self._caller = settings, caller
        self._metrics, self._targets = metrics, targets
        self._adds: dict[int, positions_pb2.ShareRequest] = {}
        """Shares that the evaluator wasn't asked for yet, by number."""
        self._removes: dict[int, None] = {}
        self._unsent = asyncio.Event()

    def add(self, request: positions_pb2.ShareRequest) -> None:
        """Opens a share. Call it only while the stream is connected."""
        self._adds[request.number] = request
        self._unsent.set()

    def remove(self, number: int) -> None:
        """Ends a share."""
        if self._adds.pop(number, None) is None and self.is_connected:
            self._removes[number] = None
            self._unsent.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Keeps the stream open until cancelled. Calls `changed` when the evaluators' addresses may have changed."""
        connection = client.connection(
            self._settings,
            self.endpoint.address,
            self._caller,
            *NEWEST_FIRST,
            server_name=self.endpoint.server_name,
        )
        async with connection as (channel, metadata):
            stub, failures = positions_pb2_grpc.PositionServiceStub(channel), 0
            while True:
                code, worked = await self._follow(stub, metadata)
                self._metrics.streams_broken.labels(code).inc()
                if worked:
                    logger().info("target_stream_broke", code=code, evaluator=self.endpoint.address)
                else:
                    _OUTAGES.failed({"evaluator": self.endpoint.address}, code, logging.WARNING)
                changed()
                failures = 0 if worked else failures + 1
                if not worked:
                    self._targets.on_away(self)
                # Add jitter: when an evaluator stops, the streams of all legs break together.
                longest_s = AT_ONCE_S if worked else RECONNECT.delay_s(failures - 1)
                await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))  # noqa: S311  # no secret

    async def _follow(
        self, stub: positions_pb2_grpc.PositionServiceStub, metadata: server.Metadata
    ) -> tuple[str, bool]:
        """Follows until the stream breaks. Returns the code, and whether the stream worked."""
        call: Any = stub.FollowPositions(metadata=metadata)
        writing: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        worked = False
        code = "ended"
        opened_s = math.inf
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await call.initial_metadata()
            if call.done():
                return (await call.code()).name, False
            opened_s, self.is_connected = loop.time(), True
            self._targets.on_connected(self)
            writing = asyncio.create_task(self._write(call))
            with _OUTAGES.working({"evaluator": self.endpoint.address}):
                async for response in call:
                    worked = True
                    for event in response.events:
                        self._targets.on_event(event)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED.name
        finally:
            call.cancel()
            if writing:
                writing.cancel()
            if self.is_connected:
                self.is_connected = False
                self._adds.clear()
                self._removes.clear()
                self._targets.on_broken(self)
        return code, worked or loop.time() - opened_s >= STREAM_WORKS_AFTER_S

    async def _write(self, call: Any) -> None:
        while True:
            await self._unsent.wait()
            await asyncio.sleep(REQUEST_DELAY_S)
            self._unsent.clear()
            while self._adds or self._removes:
                removes = list(islice(self._removes, CHANGES_PER_REQUEST))
                adds = list(islice(self._adds, CHANGES_PER_REQUEST))
                for number in removes:
                    del self._removes[number]
                requests = [self._adds.pop(number) for number in adds]
                try:
                    await call.write(positions_pb2.FollowPositionsRequest(removes=removes, adds=requests))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the stream broke, and its reader says why


class EvaluatorEndpoint(NamedTuple):
    """An evaluator, as a leg reaches it."""

    address: str
    """Host and port; the host is an IP address unless it can't be resolved."""
    server_name: str
    """Host name in the evaluator's certificate; empty if the settings give an IP address."""


async def resolve(target: str) -> set[EvaluatorEndpoint]:
    """The evaluators behind a gRPC target such as dns:///geofence:7403 or ipv4:127.0.0.1:7403,127.0.0.1:7413.

    Raises OSError if a name can't be resolved.
    """
    found: set[EvaluatorEndpoint] = set()
    for address in addresses_of(target):
        host, _, port = address.rpartition(":")
        if _is_ip(host.strip("[]")):
            found.add(EvaluatorEndpoint(address, ""))
            continue
        loop = asyncio.get_running_loop()
        for *_, where in await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
            ip = str(where[0])
            found.add(EvaluatorEndpoint(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", host))
    return found


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
