"""Load a registry with random records in bulk, and measure the rate."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.mesh import machine
from bench.mesh.population import People
from services.client.calls import AnyRecord, put_records
from services.common import times
from services.common.rpc import server
from services.registry.domain.reconciliation import Listed
from services.registry.records import kinds, translate
from tandem.registry.v1 import registry_pb2
from tests.support.common.postgres import running_postgres
from tests.support.registry.registry import MOJ, NPA, SECRET, RegistryMesh, running_registry

ORDERS_PER_WEARER = 5
TARGET_PER_S = 1_000
_VALID_MS = 1_700_000_000_000, 2_000_000_000_000


@dataclass(frozen=True, slots=True)
class Loading:
    """Result of a bulk load."""

    records: int
    took_s: float
    processor_s: float
    """Processor time of the registry, seconds."""
    in_log_s: float
    """Time until the outbox was empty, seconds."""
    listed: Sequence[Listed] = field(repr=False)
    """The part of the list that the police would send."""

    def text(self) -> str:
        """The result in words."""
        return (
            f"{self.records} records in {self.took_s:.1f} s, {self.records / self.took_s:.0f}/s, "
            f"{1000 * self.processor_s / self.records:.2f} ms of the registry's processor time each, "
            f"all in the log after {self.in_log_s:.1f} s"
        )


def records(people: People, numbers: range) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Records of the orders with these numbers: those of the Ministry and those of the police."""
    ministry: list[AnyRecord] = []
    police: list[AnyRecord] = []
    for n in numbers:
        if n % ORDERS_PER_WEARER == 0:
            ministry += _wearer(people, n)
        police += _order(people, n)
    return ministry, police


def _wearer(people: People, n: int) -> Iterator[AnyRecord]:
    person = people.next()
    yield registry_pb2.Wearer(
        wearer_id=f"w-{n}",
        national_id=person["national_id"],
        name=person["name"],
        birth_date=person["birth_date"].isoformat(),
        phone=person["phone"],
        source_version=1,
    )
    yield registry_pb2.Tag(device_id=f"t-{n}", wearer_id=f"w-{n}", source_version=1)


def _order(people: People, n: int) -> Iterator[AnyRecord]:
    yield registry_pb2.ProtectedPerson(person_id=f"p-{n}", name=str(people.next()["name"]), source_version=1)
    person = people.next()
    from_ms, until_ms = _VALID_MS
    yield registry_pb2.Order(
        order_id=f"o-{n}",
        respondent=registry_pb2.Respondent(
            national_id=person["national_id"],
            name=person["name"],
            birth_date=person["birth_date"].isoformat(),
            phone=person["phone"],
        ),
        protected_person_ids=[f"p-{n}"],
        valid_from=times.to_timestamp(from_ms),
        valid_until=times.to_timestamp(until_ms),
        source_version=1,
    )


async def load(mesh: RegistryMesh, agencies: tuple[Sequence[AnyRecord], Sequence[AnyRecord]]) -> Loading:
    """Puts the records of the Ministry and of the police in bulk."""
    ministry, police = agencies
    async with mesh.connected() as client:
        pids = {"registry": mesh.service.pid}
        began_s, before = time.perf_counter(), machine.usage(pids)
        for agency, put in ((MOJ, ministry), (NPA, police)):
            for result in await put_records(client.stub, put, server.bearer(agency, SECRET)):
                if result.outcome != registry_pb2.PutOutcome.STORED:
                    raise RuntimeError(f"a record wasn't stored: {result}")
        took_s = time.perf_counter() - began_s
        while mesh.query("select 1 from outbox where sent_at_ms is null limit 1"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return Loading(
            records=len(ministry) + len(police),
            took_s=took_s,
            processor_s=machine.usage(pids).since(before).by_process["registry"],
            in_log_s=time.perf_counter() - began_s,
            listed=[entry for record in police if (entry := _list_entry(record))],
        )


def _list_entry(record: AnyRecord) -> Listed | None:
    match record:
        case registry_pb2.ProtectedPerson():
            return kinds.list_entry(translate.parse_protected_person(record))
        case registry_pb2.Order():
            return kinds.list_entry(translate.parse_order(record))
        case _:
            return None


def run(orders: int) -> bool:
    """Loads so many orders on SQLite and on PostgreSQL and prints the rates; returns whether the target was met."""
    met = True
    for engine in ("SQLite", "PostgreSQL"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            url = ""
            if engine == "PostgreSQL":
                url = stack.enter_context(running_postgres(fsync=True)).new_database()
            mesh = stack.enter_context(running_registry(Path(folder), 1, url))
            print(f"fsync {machine.fsync_ms(Path(folder)):.2f} ms, calibration loop {machine.calibration_ms():.0f} ms")
            loading = asyncio.run(load(mesh, records(People(), range(orders))))
            rate = loading.records / loading.took_s
            met = met and rate >= TARGET_PER_S
            verdict = "met" if rate >= TARGET_PER_S else "MISSED"
            print(f"{engine}: {orders} orders, {loading.text()}; target {TARGET_PER_S}/s: {verdict}")
    return met
