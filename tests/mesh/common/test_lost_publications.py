"""Publications compared with their stream: many are read together, and those that the stream lost are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus
from services.common.messaging.lost_publications import Publication, StreamComparison

STREAM = flow.INCIDENTS.name
MINE, OTHERS = flow.incident_subject("police", "incident-1"), flow.incident_subject("probation", "incident-1")
SUBJECTS = (flow.incident_subject("police", ">"),)


class Records:
    """A publisher's records, in memory."""

    def __init__(self) -> None:
        self.all: list[Publication] = []

    async def newest(self, before: int, limit: int) -> list[Publication]:
        found = [publication for publication in self.all if publication.position < before]
        return found[::-1][:limit]

    async def highest(self, up_to: int) -> Publication | None:
        found = [publication for publication in self.all if publication.position <= up_to]
        return max(found, key=lambda publication: publication.sequence, default=None)


async def publish(bus: Bus, records: Records, count: int) -> None:
    """Publishes messages and records them, among messages of another publisher."""
    for _ in range(count):
        await bus.publish(OTHERS, b"other")
        position = len(records.all) + 1
        ack = await bus.publish(MINE, b"mine", msg_id=f"message-{position}")
        records.all.append(Publication(position, ack.seq, MINE, f"message-{position}"))


async def test_many_publications_are_compared_in_one_reading(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, api = 0, bus.api

    async def counted(subject: str, request: Mapping[str, object]) -> dict[str, Any]:
        nonlocal requests
        requests += subject.startswith("STREAM.MSG.GET")
        return await api(subject, request)

    monkeypatch.setattr(bus, "api", counted)
    records = Records()
    await publish(bus, records, 10)
    lost_among = lost_publications.by_sequence(bus, STREAM, SUBJECTS)
    comparison = StreamComparison(bus, STREAM, records=records, lost_among=lost_among)
    assert await comparison.lost() == []
    await publish(bus, records, 2 * lost_publications.PAGE)
    requests = 0
    assert await comparison.lost() == []
    assert requests < 20


@pytest.mark.parametrize("subjects", [SUBJECTS, ()])
async def test_publications_whose_sequences_hold_other_messages_are_lost(bus: Bus, subjects: tuple[str, ...]) -> None:
    records = Records()
    await publish(bus, records, 20)
    lost_among = lost_publications.by_sequence(bus, STREAM, subjects)
    comparison = StreamComparison(bus, STREAM, records=records, lost_among=lost_among)
    assert await comparison.lost() == []
    await publish(bus, records, 20)
    for index in (25, 38, 39):  # the stream went back, and others published at these sequences
        records.all[index] = records.all[index]._replace(message_id=f"lost-{index}")
    assert [publication.message_id for publication in await comparison.lost()] == ["lost-25", "lost-38", "lost-39"]
