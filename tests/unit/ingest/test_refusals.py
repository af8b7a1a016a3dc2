"""What is refused slows its own sender down, and holds up nobody else, nor for long what comes behind it on the same stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

import pytest

from services.common.clock import MeshClock
from services.common.rpc.errors import InvalidField, StoreFull
from services.ingest import intake
from services.ingest.admission.rate_limit import REFUSALS_BURST, REFUSALS_PER_S, Quotas
from services.ingest.admission.routes import Partitions
from services.ingest.domain import EquipmentEvent, Position, Positions, Reason, Sender
from services.ingest.intake import Intake, Reports
from tandem.common.v1 import log_pb2

VENDOR = Sender("spiffe://vendor/a", "a", "")
AT_ONCE_S = 8.0
"""Nothing that isn't held up takes so long."""


class Everything:
    """Knows all devices, stores all at once, and counts nothing: stands for what surrounds the intake."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        """Devices of what went into the log."""

    # routes
    def allowed(self, sender: Sender) -> Mapping[str, Partitions]:
        return {sender.device_id or "tag": (0,)}

    async def allow(self, sender: Sender, device_id: str) -> Partitions | Reason:
        return Reason.UNKNOWN_DEVICE

    # the writer of a partition
    def positions(self, sender: str, positions: Positions, *_: Any, **__: Any) -> asyncio.Future[None]:
        return self._put(*positions.device_ids)

    def equipment(self, sender: str, event: EquipmentEvent, *_: Any) -> asyncio.Future[None]:
        return self._put(event.device_id)

    def _put(self, *device_ids: str) -> asyncio.Future[None]:
        self.stored += device_ids
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    # quarantine
    def refused(self, *_: Any) -> None:
        pass


class LastReports:
    def stored(self, *_: Any) -> None:
        pass


class Door:
    """An intake with everything around it."""

    def __init__(self) -> None:
        self.around = cast(Any, Everything())
        self.quotas = Quotas(10.0, 300)
        last = cast(Any, LastReports())
        self.intake = Intake(self.around, {0: self.around}, last, self.around, self.quotas, MeshClock())

    def owes(self, sender: Sender, owed_s: float) -> None:
        """Much of a sender was refused."""
        refused = round(REFUSALS_BURST + owed_s * REFUSALS_PER_S)
        self.quotas.refusals.wait_s(sender.answers_for, refused, time.monotonic())

    async def bring(
        self, sender: Sender, *said: Position | EquipmentEvent | InvalidField, patient: bool = False
    ) -> None:
        await self.intake.admit(sender, Reports.of(said, [""] * len(said)), False, "http", patient=patient)


def phone(name: str) -> Sender:
    return Sender("", "", name)


def position(device_id: str) -> Position:
    return Position(device_id, "r", time.time_ns() // 1_000_000, 375_000_000, 1_270_000_000, 5_000)


def panic(device_id: str) -> EquipmentEvent:
    return EquipmentEvent(device_id, "p", log_pb2.PANIC_BUTTON, time.time_ns() // 1_000_000)


BAD = InvalidField("alarm", "is none")


async def test_one_phones_refusals_hold_up_no_other_phone() -> None:
    endpoint = Door()
    calls = [asyncio.ensure_future(endpoint.bring(phone("flood"), *[BAD] * 16)) for _ in range(3_500)]
    await asyncio.sleep(0.1)
    assert not all(call.done() for call in calls), "the one that floods waits itself"
    async with asyncio.timeout(AT_ONCE_S):
        await endpoint.bring(phone("honest"), position("honest"))
        await endpoint.bring(phone("hers"), panic("hers"), BAD)
    assert endpoint.around.stored == ["honest", "hers"]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("sender", [VENDOR, phone("tag")], ids=["vendor", "phone"])
async def test_what_is_sound_is_on_its_way_before_its_sender_waits(sender: Sender) -> None:
    endpoint = Door()
    endpoint.owes(sender, 0.9)
    call = asyncio.ensure_future(endpoint.bring(sender, position("tag"), panic("tag"), BAD))
    await asyncio.sleep(0.1)
    assert endpoint.around.stored == ["tag", "tag"] and not call.done()
    call.cancel()


async def test_calls_of_who_owes_much_are_turned_away_but_for_what_devices_say_of_themselves() -> None:
    endpoint = Door()
    endpoint.owes(VENDOR, 20.0)
    with pytest.raises(StoreFull) as refusal:
        await endpoint.bring(VENDOR, position("tag"))
    assert 10 < refusal.value.retry_after_s < 20 and endpoint.around.stored == []
    async with asyncio.timeout(AT_ONCE_S):
        await endpoint.bring(VENDOR, position("tag"), panic("tag"))
    assert endpoint.around.stored == ["tag", "tag"]


async def test_on_a_stream_what_is_sound_doesnt_wait_for_what_was_refused_before_it() -> None:
    endpoint = Door()
    endpoint.owes(VENDOR, 20.0)
    async with asyncio.timeout(AT_ONCE_S):
        await endpoint.bring(VENDOR, position("tag"), patient=True)
    assert endpoint.around.stored == ["tag"]


async def test_the_wait_behind_a_batch_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Door()
    monkeypatch.setattr(intake, "PAID_AT_ONCE_S", 0.2)
    endpoint.owes(VENDOR, 20.0)
    began_s = time.monotonic()
    await endpoint.bring(VENDOR, panic("tag"), BAD)
    assert 0.2 <= time.monotonic() - began_s < AT_ONCE_S
