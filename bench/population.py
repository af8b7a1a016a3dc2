"""Who takes part in a benchmark: joint cases whose parties report, put into the registry by its public interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.cli.calls import call
from services.cli.mesh import Clients
from services.cli.parties import MOJ_RECORDS, NPA_RECORDS
from services.common import times
from tandem.registry.v1 import registry_pb2

AT_ONCE = 8
"""Cases that are put at the same time."""
_BIRTH_DATE = "1990-01-01"
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Party:
    """One joint case: a wearer with a tag, a protected person with a device, and the order between them."""

    number: int

    @property
    def tag_id(self) -> str:
        """The wearer's tag."""
        return f"tag-{self.number}"

    @property
    def device_id(self) -> str:
        """The protected person's device."""
        return f"device-{self.number}"

    @property
    def home(self) -> tuple[float, float]:
        """Where the protected person is, degrees; those of different cases are kilometres apart."""
        return 34.5 + self.number % 80 * 0.04, 126.5 + self.number // 80 * 0.04


def parties(count: int) -> list[Party]:
    """That many cases."""
    return [Party(number) for number in range(count)]


async def register(clients: Clients, cases: Sequence[Party]) -> float:
    """Puts all records of these cases and returns how long it took, seconds.

    Each order has the three rings that it gets by default: 2 km, 1 km and 100 m.
    """
    began = time.monotonic()
    now_ms = clients.clock.now_ms()
    left = iter(cases)

    async def work() -> None:
        for party in left:
            await _put_case(clients, party, now_ms)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return time.monotonic() - began


async def _put_case(clients: Clients, party: Party, now_ms: int) -> None:
    registry, moj, npa = clients.registry, clients.identity(MOJ_RECORDS), clients.identity(NPA_RECORDS)
    n = party.number
    national_id = f"900101{1_000_000 + n}"
    wearer = registry_pb2.Wearer(
        wearer_id=f"wearer-{n}", national_id=national_id, name="-", birth_date=_BIRTH_DATE, source_version=1
    )
    tag = registry_pb2.Tag(device_id=party.tag_id, wearer_id=wearer.wearer_id, source_version=1)
    person = registry_pb2.ProtectedPerson(person_id=f"person-{n}", name="-", source_version=1)
    device = registry_pb2.Device(device_id=party.device_id, person_id=person.person_id, source_version=1)
    order = registry_pb2.Order(
        order_id=f"order-{n}",
        respondent=registry_pb2.Respondent(national_id=national_id, name="-", birth_date=_BIRTH_DATE),
        protected_person_ids=[person.person_id],
        valid_from=times.to_timestamp(now_ms // _DAY_MS * _DAY_MS),
        valid_until=times.to_timestamp((now_ms // _DAY_MS + 2) * _DAY_MS),
        source_version=1,
    )
    await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
    await call(registry.PutTag, registry_pb2.PutTagRequest(tag=tag), moj)
    await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
    await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
    # The order comes last, so that each case is told to the log once, whole.
    await call(registry.PutOrder, registry_pb2.PutOrderRequest(order=order), npa)
