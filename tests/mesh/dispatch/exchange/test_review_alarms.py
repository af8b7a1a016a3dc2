"""Alarms of match reviews by webhook: sent once to each receiver of JSON, ended once, and kept across restarts and lost answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.common.priority import PriorityGate
from services.common.retrying import Backoff
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.settings import CommonSettings
from services.dispatch.exchange import webhooks
from services.dispatch.settings import DispatchSettings
from tandem.registry.v1 import match_review_pb2, match_review_pb2_grpc
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import SECRET, running, settings
from tests.support.dispatch.receivers import Receiver, configured, receiver_entry

SINCE_MS, ALARMED_MS = 1_700_000_000_000, 1_700_000_900_000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the intervals to a hundredth."""
    monkeypatch.setattr(webhooks, "RETRY", Backoff(0.05, 300.0))
    monkeypatch.setattr(webhooks, "REVIEW_CHECK_INTERVAL_S", 0.05)


def alarm(case_id: str, since_ms: int = SINCE_MS) -> match_review_pb2.AlarmedReview:
    message = match_review_pb2.AlarmedReview(case_id=case_id, order_id=f"o-{case_id}", wearer_id=f"w-{case_id}")
    message.since.FromMilliseconds(since_ms)
    message.alarmed_at.FromMilliseconds(ALARMED_MS)
    return message


class FakeRegistry(match_review_pb2_grpc.MatchReviewServiceServicer):
    """Registry with the alarms that a test sets. Only desks may ask, as the protos say. It shows no record."""

    def __init__(self) -> None:
        self.alarms: Sequence[match_review_pb2.AlarmedReview] = ()
        self.count: int | None = None
        """Number of alarms that it states; None for the number that it lists."""
        self.asked: list[str] = []

    async def ReadReview(
        self, request: match_review_pb2.ReadReviewRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> match_review_pb2.ReadReviewResponse:
        raise AssertionError("a leg asks for no record")

    async def GetReviewQueue(
        self, request: match_review_pb2.GetReviewQueueRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> match_review_pb2.GetReviewQueueResponse:
        self.asked.append(rpc.caller().spiffe_id)
        count = len(self.alarms) if self.count is None else self.count
        return match_review_pb2.GetReviewQueueResponse(open=count, alarmed=count, alarms=self.alarms)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[str]:
        """Serves until the end of the context; yields the target."""
        configured = CommonSettings(port=port, dev_secret=SECRET)
        async with rpc.serve(
            configured,
            lambda server: match_review_pb2_grpc.add_MatchReviewServiceServicer_to_server(self, server),
            history=HistoryBudget(PriorityGate()),
        ) as served:
            yield f"ipv4:127.0.0.1:{served.port}"


def leg_settings(
    nats: TestServer, folder: Path, registry: str, *entries: dict[str, Any], leg: str = "police"
) -> DispatchSettings:
    return settings(leg, nats, folder, webhooks=configured(folder, *entries), registry=registry)


def announced(receiver: Receiver) -> list[tuple[str, str]]:
    """State and case of each message of a receiver, in order."""
    return [(message["state"], message["case_id"]) for message in receiver.steps()]


@pytest.mark.parametrize("leg", ["police", "probation"])
async def test_an_alarm_and_its_end_are_sent_once_each(nats: TestServer, tmp_path: Path, leg: str) -> None:
    receiver, registry = Receiver(), FakeRegistry()
    receiver.answers = [500]
    async with registry.serving() as target, receiver.serving():
        registry.alarms = [alarm("a")]
        async with running(leg_settings(nats, tmp_path, target, receiver_entry(receiver), leg=leg)):
            await receiver.wait_for(2)
            registry.alarms = [alarm("b")]
            await receiver.wait_for(4)
        # After a restart nothing is repeated; a review that was opened once more is another alarm.
        registry.alarms = [alarm("b", since_ms=SINCE_MS + 1)]
        async with running(leg_settings(nats, tmp_path, target, receiver_entry(receiver), leg=leg)):
            await receiver.wait_for(6)
    assert announced(receiver)[1:] == [
        ("RAISED", "a"),
        ("ENDED", "a"),
        ("RAISED", "b"),
        ("ENDED", "b"),
        ("RAISED", "b"),
    ]
    ids = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert ids[0] == ids[1] and len(set(ids)) == 5
    assert json.loads(receiver.requests[1][1]) == {
        "type": "tandem.registry.v1.AlarmedReview",
        "leg": leg,
        "state": "RAISED",
        "case_id": "a",
        "order_id": "o-a",
        "wearer_id": "w-a",
        "since": "2023-11-14T22:13:20Z",
        "alarmed_at": "2023-11-14T22:28:20Z",
    }
    assert set(registry.asked) == {f"spiffe://tandem/service/dispatch-{leg}"}


async def test_an_alarm_outlasts_a_registry_that_is_away_and_a_list_that_is_cut(
    nats: TestServer, tmp_path: Path
) -> None:
    receiver, registry = Receiver(), FakeRegistry()
    async with receiver.serving():
        async with registry.serving() as target:
            registry.alarms = [alarm("a")]
            given = leg_settings(nats, tmp_path, target, receiver_entry(receiver))
            async with running(given):
                await receiver.wait_for(1)
        async with running(given):  # the registry is away
            port = int(target.rpartition(":")[2])
            async with registry.serving(port):
                registry.alarms, registry.count = [alarm("b")], 2  # of two alarms, only one is listed
                await receiver.wait_for(2)
                registry.alarms, registry.count = [alarm("b"), alarm("c")], None
                await receiver.wait_for(4)
    assert announced(receiver) == [("RAISED", "a"), ("RAISED", "b"), ("ENDED", "a"), ("RAISED", "c")]


async def test_receivers_of_incidents_in_eido_get_no_review(nats: TestServer, tmp_path: Path) -> None:
    plain, board = Receiver(), Receiver()
    registry = FakeRegistry()
    registry.alarms = [alarm("a")]
    entries = (
        receiver_entry(board, name="board", form="eido"),
        receiver_entry(plain),
    )
    async with (
        registry.serving() as target,
        plain.serving(),
        board.serving(),
        running(leg_settings(nats, tmp_path, target, *entries)),
    ):
        await plain.wait_for(1)
        registry.alarms = []
        await plain.wait_for(2)
    assert announced(plain) == [("RAISED", "a"), ("ENDED", "a")] and not board.requests
