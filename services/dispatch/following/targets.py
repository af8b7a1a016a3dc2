"""Live positions of targets, from one stream to each evaluator.

Each target is a share at one evaluator. If the evaluator refuses the share, another one may have the incident. If all refuse it, or the
share ended, it is retried after growing delays, and at once when there is news of its incident. Positions are kept in memory only.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from itertools import count

from google.rpc import code_pb2

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging.permissions import SERVICE
from services.common.observability.outages import WORKS_AFTER_S, Outages
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.dispatch.domain.leg import Leg
from services.dispatch.following.endpoints import EvaluatorEndpoint, resolve
from services.dispatch.following.evaluator_stream import EvaluatorStream
from services.dispatch.following.metrics import FollowingMetrics
from services.dispatch.following.target import FollowedTarget, TargetKey
from services.dispatch.roster.last_known_positions import LastKnownPositions
from services.dispatch.settings import DispatchSettings
from tandem.geofence.v1 import positions_pb2

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
                        endpoint, self._settings, self._caller, metrics=self._metrics, listener=self
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
