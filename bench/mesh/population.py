"""Population of a benchmark: joint cases whose parties report, registered through the registry's public interface."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from services.client.actors import MOJ_RECORDS, NPA_RECORDS, VENDOR_ID
from services.client.calls import AnyRecord, put_records
from services.client.mesh import Clients
from services.common import times
from services.common.failure import CommandFailed
from services.registry.domain.records import Sex
from tandem.registry.v1 import registry_pb2

_DAY_MS = 86_400_000

_SURNAMES = tuple("김이박최정강조윤장임한오서신권황안송류홍")
_SHARES = (215, 147, 84, 47, 43, 24, 21, 20, 20, 17, 15, 15, 15, 18, 14, 14, 14, 14, 13, 12)
"""Frequencies of the surnames in Korea, per thousand."""
_SYLLABLES = "가경광규근기나남다대도동라라민범병보상서석선성소수승시아연영예완용우원유윤은인재정종주준지진찬채철태하한해현형혜호훈희"


class People:
    """Generator of random people, each with a unique national number."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._numbers = itertools.count(1)

    def next(self) -> dict[str, Any]:
        """Personal data of the next person, as a record holds it."""
        born = date(1950, 1, 1) + timedelta(days=self._random.randrange(20_000))
        (surname,) = self._random.choices(_SURNAMES, _SHARES)
        return {
            # Spread the numbers, so that no two differ by one typing error; such pairs would need a manual match review.
            "national_id": f"{born:%y%m%d}{next(self._numbers) * 3_000_017 % 10_000_000:07d}",
            "name": surname + "".join(self._random.choices(_SYLLABLES, k=2)),
            "birth_date": born,
            "sex": self._random.choice((Sex.MALE, Sex.FEMALE)),
            "phone": f"010-{self._random.randrange(10_000):04d}-{self._random.randrange(10_000):04d}",
        }


@dataclass(frozen=True, slots=True)
class Party:
    """One joint case: a wearer with a tag, a protected person with a device, and the order between them."""

    number: int

    @property
    def tag_id(self) -> str:
        """Device id of the wearer's tag."""
        return f"tag-{self.number}"

    @property
    def device_id(self) -> str:
        """Device id of the protected person's device."""
        return f"device-{self.number}"

    @property
    def home(self) -> tuple[float, float]:
        """Latitude and longitude of the protected person, degrees; homes of different cases are kilometres apart."""
        return 34.5 + self.number % 80 * 0.04, 126.5 + self.number // 80 * 0.04


def actors(count: int) -> list[Party]:
    """A number of joint cases."""
    return [Party(number) for number in range(count)]


async def register(clients: Clients, cases: Sequence[Party]) -> float:
    """Registers all records of these cases in bulk; returns the time that it took, seconds.

    Each order has the three default rings: 2 km, 1 km and 100 m.
    """
    began = time.monotonic()
    now_ms = clients.clock.now_ms()
    people = People()
    ministry: list[AnyRecord] = []
    police: list[AnyRecord] = []
    for party in cases:
        _add_case(party, people.next(), now_ms=now_ms, ministry=ministry, police=police)
    # The orders come last, so that the registry publishes each case to the log once, complete.
    await _put(clients, MOJ_RECORDS, ministry)
    await _put(clients, NPA_RECORDS, police)
    return time.monotonic() - began


async def renew(clients: Clients, cases: Sequence[Party]) -> float:
    """Prolongs the orders of these cases by a day, as agencies that send their records each day do; returns the time, seconds.

    The cases must be those that were registered, from the first one on, in their order.
    """
    began = time.monotonic()
    now_ms = clients.clock.now_ms()
    people = People()
    orders = [_order(party, people.next(), now_ms=now_ms + _DAY_MS, version=2) for party in cases]
    await _put(clients, NPA_RECORDS, orders)
    return time.monotonic() - began


async def _put(clients: Clients, agency: str, records: Sequence[AnyRecord]) -> None:
    for result in await put_records(clients.registry, records, clients.identity(agency)):
        if result.HasField("refusal"):
            raise CommandFailed(f"the registry refused a record: {result.refusal.message}")


def _add_case(
    party: Party,
    person_data: Mapping[str, Any],
    *,
    now_ms: int,
    ministry: list[AnyRecord],
    police: list[AnyRecord],
) -> None:
    n, identity = party.number, _identity(person_data)
    wearer = registry_pb2.Wearer(wearer_id=f"wearer-{n}", source_version=1, **identity)
    tag = registry_pb2.Tag(device_id=party.tag_id, wearer_id=wearer.wearer_id, source_version=1, vendor_id=VENDOR_ID)
    person = registry_pb2.ProtectedPerson(person_id=f"person-{n}", name="-", source_version=1)
    device = registry_pb2.Device(
        device_id=party.device_id, person_id=person.person_id, source_version=1, vendor_id=VENDOR_ID
    )
    ministry += (wearer, tag)
    police += (person, device, _order(party, person_data, now_ms=now_ms, version=1))


def _identity(person_data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "national_id": person_data["national_id"],
        "name": person_data["name"],
        "birth_date": person_data["birth_date"].isoformat(),
    }


def _order(party: Party, person_data: Mapping[str, Any], *, now_ms: int, version: int) -> registry_pb2.Order:
    """A version of a case's order, which ends two days after `now_ms`."""
    day_ms = now_ms // _DAY_MS * _DAY_MS
    return registry_pb2.Order(
        order_id=f"order-{party.number}",
        respondent=registry_pb2.Respondent(**_identity(person_data)),
        protected_person_ids=[f"person-{party.number}"],
        valid_from=times.to_timestamp(day_ms - (version - 1) * _DAY_MS),
        valid_until=times.to_timestamp(day_ms + 2 * _DAY_MS),
        source_version=version,
    )
