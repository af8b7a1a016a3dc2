"""A leg's streams to the evaluators, with real gRPC: which evaluator has a share, and where it goes when that one can't have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.common import times
from services.common.geometry import LatLon
from services.common.observability import outages
from services.common.retrying import Backoff
from services.dispatch.domain.leg import Leg as LegName
from services.dispatch.following import targets as followed
from services.dispatch.following.targets import FollowedTarget, TargetKey, Targets
from services.dispatch.leg.availability import LastKnownPositions
from services.dispatch.metrics import FollowingMetrics
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import subject_pb2
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc

PATIENCE_S = 60.0
SECRET = "secret"
NOW_MS = 1_780_000_000_000


class FakeEvaluator(positions_pb2_grpc.PositionServiceServicer):
    """Opens each share, or refuses it, and sends one position."""

    def __init__(self) -> None:
        self.refusals: dict[str, int] = {}
        """google.rpc.Code by incident id."""
        self.requests: list[positions_pb2.FollowPositionsRequest] = []
        self.open: dict[int, positions_pb2.ShareRequest] = {}
        self.streams = 0
        self._queue: asyncio.Queue[positions_pb2.FollowPositionsResponse] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    async def start(self) -> int:
        """Serves, on the same port as before. Returns the port."""
        server = self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        positions_pb2_grpc.add_PositionServiceServicer_to_server(self, server)
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        await server.start()
        return self._port

    async def stop(self) -> None:
        """Ends all streams, and refuses connections."""
        assert self._server
        await self._server.stop(0)
        self.open.clear()

    def send(self, *events: positions_pb2.ShareEvent) -> None:
        """Sends events over the present stream."""
        self._queue.put_nowait(positions_pb2.FollowPositionsResponse(events=events))

    def added(self) -> list[positions_pb2.ShareRequest]:
        """All shares that were requested so far."""
        return [share for request in self.requests for share in request.adds]

    async def FollowPositions(
        self, requests: AsyncIterator[positions_pb2.FollowPositionsRequest], context: Any
    ) -> AsyncIterator[positions_pb2.FollowPositionsResponse]:
        await context.send_initial_metadata(())
        self.streams += 1
        self._queue, self.open = asyncio.Queue(), {}
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                yield await self._queue.get()
        finally:
            reading.cancel()

    async def _read(self, requests: AsyncIterator[positions_pb2.FollowPositionsRequest]) -> None:
        async for request in requests:
            self.requests.append(request)
            for number in request.removes:
                self.open.pop(number, None)
            for share in request.adds:
                if (code := self.refusals.get(share.incident_id)) is not None:
                    refusal = positions_pb2.ShareRefused(code=code, reason="no")
                    self.send(positions_pb2.ShareEvent(number=share.number, refused=refusal))
                else:
                    self.open[share.number] = share
                    position = positions_pb2.LivePosition(lat_deg=37.5, lon_deg=127.0, accuracy_m=5)
                    position.fix_time.CopyFrom(times.to_timestamp(NOW_MS))
                    self.send(positions_pb2.ShareEvent(number=share.number, position=position))


class Leg:
    """The targets of a police leg."""

    def __init__(self, targets: Targets, evaluators: list[FakeEvaluator]) -> None:
        self.targets = targets
        self.evaluators = evaluators

    def want(self, incident_id: str, *subject_ids: str) -> None:
        self.targets.want(incident_id, {key(incident_id, subject_id) for subject_id in subject_ids})

    def of(self, incident_id: str, subject_id: str = "w") -> FollowedTarget:
        target = self.targets.get(key(incident_id, subject_id))
        assert target is not None
        return target

    def open_at(self) -> dict[str, int]:
        """Index of the evaluator that has each incident's share."""
        return {share.incident_id: i for i, each in enumerate(self.evaluators) for share in each.open.values()}


def key(incident_id: str, subject_id: str = "w") -> TargetKey:
    return TargetKey(incident_id, subject_pb2.WEARER, subject_id)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def following(count: int = 2) -> AsyncIterator[Leg]:
    """A leg with a stream to each of some evaluators."""
    evaluators = [FakeEvaluator() for _ in range(count)]
    async with AsyncExitStack() as stack:
        ports = []
        for evaluator in evaluators:
            ports.append(await evaluator.start())
            stack.push_async_callback(evaluator.stop)
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        settings = DispatchSettings(
            leg=LegName.POLICE,
            acknowledge_within_s=30,
            port=0,
            metrics_port=0,
            dev_secret=SECRET,
            geofence=f"ipv4:{addresses}",
        )
        targets = Targets(settings, LastKnownPositions(), FollowingMetrics(CollectorRegistry()))
        running = asyncio.create_task(targets.run())
        try:
            # An evaluator has the stream a moment before the leg knows that it is connected.
            await until(lambda: [stream.is_connected for stream in targets._streams.values()] == [True] * count)
            yield Leg(targets, evaluators)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "RETRY", Backoff(0.01, 0.05))
    monkeypatch.setattr(followed, "RETRY_UNAVAILABLE", Backoff(0.01, 0.05))


async def test_a_thousand_targets_spread_over_one_stream_for_each_evaluator() -> None:
    async with following() as leg:
        for n in range(1_000):
            leg.want(f"i-{n}", "w")
        await until(lambda: all(not leg.of(f"i-{n}").interrupted for n in range(1_000)))
        assert [evaluator.streams for evaluator in leg.evaluators] == [1, 1]
        assert all(len(evaluator.open) > 300 for evaluator in leg.evaluators)
        assert sum(len(evaluator.requests) for evaluator in leg.evaluators) < 100, "shares are requested in batches"
        assert leg.of("i-7").track[-1].point == LatLon(37.5, 127.0)
        for n in range(1, 1_000):
            leg.want(f"i-{n}")
        await until(lambda: sum(len(evaluator.open) for evaluator in leg.evaluators) == 1)
        assert not leg.targets.of("i-1")


@pytest.mark.parametrize("code", [code_pb2.FAILED_PRECONDITION, code_pb2.UNAVAILABLE])
async def test_a_refused_share_goes_to_the_other_evaluator_and_is_retried_until_some_evaluator_has_it(
    code: int,
) -> None:
    async with following() as leg:
        for n in range(20):
            leg.evaluators[0].refusals[f"i-{n}"] = code
            leg.want(f"i-{n}", "w")
        await until(lambda: len(leg.evaluators[1].open) == 20)
        leg.evaluators[0].refusals["none"] = leg.evaluators[1].refusals["none"] = code
        leg.want("none", "w")
        await until(
            lambda: [sum(s.incident_id == "none" for s in each.added()) >= 3 for each in leg.evaluators] == [True, True]
        )
        assert leg.of("none").interrupted
        del leg.evaluators[1].refusals["none"]
        await until(lambda: not leg.of("none").interrupted)
        assert leg.open_at()["none"] == 1


async def test_evaluators_that_refuse_each_try_are_one_line_and_so_is_one_that_stays_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followed, "RECONNECT", Backoff(0.01, 0.05))
    monkeypatch.setattr(outages, "INTERVAL_S", 2 * PATIENCE_S)
    with capture_logs() as logs:
        async with following() as leg:
            for evaluator in leg.evaluators:
                evaluator.refusals["i-1"] = code_pb2.UNAVAILABLE
            leg.want("i-1", "w")
            await until(lambda: sum(len(evaluator.added()) for evaluator in leg.evaluators) >= 6)
            await leg.evaluators[0].stop()
            broken = leg.targets._metrics.streams_broken.labels("UNAVAILABLE")
            await until(lambda: broken._value.get() >= 6)
    warnings = [(line["event"], line.get("reason")) for line in logs if line["log_level"] == "warning"]
    assert sorted(warnings) == [("target_refused", "UNAVAILABLE: no"), ("target_stream_broke", "UNAVAILABLE")]


async def test_shares_go_to_the_other_evaluator_when_theirs_dies() -> None:
    async with following() as leg:
        for n in range(40):
            leg.want(f"i-{n}", "w")
        await until(lambda: len(leg.open_at()) == 40)
        theirs = [incident_id for incident_id, i in leg.open_at().items() if i == 0]
        await leg.evaluators[0].stop()
        await until(lambda: len(leg.evaluators[1].open) == 40)
        await until(lambda: not any(leg.of(incident_id).interrupted for incident_id in theirs))
        await leg.evaluators[1].stop()
        await until(lambda: all(leg.of(f"i-{n}").interrupted for n in range(40)))
        leg.want("while-none", "w")
        await leg.evaluators[0].start()
        await until(lambda: len(leg.evaluators[0].open) == 41)
        await until(lambda: not any(leg.of(f"i-{n}").interrupted for n in range(40)))


async def test_a_stream_that_only_broke_asks_for_the_same_shares_so_that_they_continue() -> None:
    async with following(1) as leg:
        (evaluator,) = leg.evaluators
        leg.want("i", "w", "w2")
        # Until the leg has heard of both: a stream that breaks before its first message is one that didn't work.
        await until(lambda: not (leg.of("i", "w").interrupted or leg.of("i", "w2").interrupted))
        before = {share.subject.subject_id: share for share in evaluator.open.values()}
        await evaluator.stop()
        await evaluator.start()
        await until(lambda: len(evaluator.open) == 2)
        for share in evaluator.open.values():
            earlier = before[share.subject.subject_id]
            assert share.expires_at == earlier.expires_at and share.number != earlier.number


async def test_an_expired_share_is_renewed_and_an_ended_one_when_there_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(1) as leg:
        (evaluator,) = leg.evaluators
        leg.want("i", "w")
        await until(lambda: not leg.targets.of("i")[key("i")].interrupted)
        (number,) = evaluator.open
        evaluator.send(
            positions_pb2.ShareEvent(number=number, end=positions_pb2.ShareEnd(reason=positions_pb2.EXPIRED))
        )
        await until(lambda: len(evaluator.added()) == 2)
        assert not leg.of("i").interrupted, "the target is followed without a gap"
        monkeypatch.setattr(followed, "RETRY", Backoff(3_600, 3_600))
        ended = positions_pb2.ShareEnd(reason=positions_pb2.INCIDENT_ENDED)
        evaluator.send(positions_pb2.ShareEvent(number=evaluator.added()[-1].number, end=ended))
        await until(lambda: leg.of("i").interrupted)
        assert len(evaluator.added()) == 2
        leg.want("i", "w")
        await until(lambda: not leg.of("i").interrupted)
        assert len(evaluator.added()) == 3


async def test_an_event_of_a_share_that_was_removed_has_no_effect() -> None:
    async with following(1) as leg:
        (evaluator,) = leg.evaluators
        changed: list[str] = []
        leg.targets.on_changed(changed.append)
        leg.want("i", "w")
        await until(lambda: bool(changed))
        (number,) = evaluator.open
        leg.want("i")
        leg.want("j", "w")
        await until(lambda: "j" in changed)
        changed.clear()
        position = positions_pb2.LivePosition(unknown=True)
        evaluator.send(positions_pb2.ShareEvent(number=number, position=position))
        other = next(iter(evaluator.open))
        evaluator.send(positions_pb2.ShareEvent(number=other, position=position))
        await until(lambda: bool(changed))
        assert changed == ["j"] and not leg.targets.of("i")
