"""gRPC service of a leg's statistics. Counts name nobody; a list of people by id is a disclosure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc.aio

from services.common import ids
from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import Grounds, RecordKind, check_grounds
from services.common.privacy.purposes import PURPOSES
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, PermissionDenied, Unavailable
from services.common.rpc.identity import Role
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.api import admit
from services.dispatch.leg.store import Store
from services.dispatch.publications.disclosures import LegDisclosures
from services.dispatch.statistics import queries, translate
from services.dispatch.statistics.queries import BurdenRow
from tandem.common.v1 import ledger_pb2
from tandem.dispatch.v1 import statistics_pb2, statistics_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
REFERENCE = "statistics"
"""Reference of a disclosure, where the caller gives none."""


class StatisticsApi(statistics_pb2_grpc.StatisticsServiceServicer):
    """StatisticsService of one leg."""

    def __init__(self, leg: Leg, store: Store, clock: MeshClock, *, disclosures: LegDisclosures) -> None:
        self._leg, self._store, self._clock, self._disclosures = leg, store, clock, disclosures
        self._bus: Bus | None = None

    def connected(self, bus: Bus) -> None:
        """Sets the bus on which disclosures are published."""
        self._bus = bus

    async def GetStatistics(
        self, request: statistics_pb2.GetStatisticsRequest, context: Context
    ) -> statistics_pb2.GetStatisticsResponse:
        """Returns the statistics of a period, in one snapshot."""
        admit(self._leg, Role.ROLE_REVIEWER)
        asked = translate.period(request)
        counts = await self._store.reading_history(partial(queries.count, own=self._leg, period=asked))
        return translate.statistics(counts, self._leg, asked)

    async def ListBurdens(
        self, request: statistics_pb2.ListBurdensRequest, context: Context
    ) -> statistics_pb2.ListBurdensResponse:
        """Lists people with their burdens, after the disclosure is stored."""
        admit(self._leg, Role.ROLE_REVIEWER)
        if not self._leg.policy.has_units:
            raise PermissionDenied(f"the {self._leg} leg lists nobody: ask the police leg")
        asked, (skip, size) = translate.period(request), translate.page(request)
        kind = self._kind(request.kind)
        now_ms = self._clock.now_ms()
        grounds = _grounds(request, kind, now_ms)
        of_wearers = kind is RecordKind.WEARER
        rows = await self._store.reading_history(
            partial(queries.burdens, period=asked, of_wearers=of_wearers, skip=skip, limit=size + 1)
        )
        shown = await self._record(rows[:size], kind, grounds, now_ms=now_ms)
        return statistics_pb2.ListBurdensResponse(
            burdens=[translate.burden(row) for row in shown],
            next_page_token=str(skip + size) if len(rows) > size else "",
        )

    def _kind(self, kind: statistics_pb2.BurdenedKind.ValueType) -> RecordKind:
        if kind == statistics_pb2.BURDENED_WEARER:
            return RecordKind.WEARER
        if kind != statistics_pb2.BURDENED_PROTECTED_PERSON:
            raise InvalidField("kind", "must be BURDENED_WEARER or BURDENED_PROTECTED_PERSON")
        if not self._leg.policy.may_locate_person:
            raise InvalidField("kind", f"must be BURDENED_WEARER: the {self._leg} leg lists wearers only")
        return RecordKind.PROTECTED_PERSON

    async def _record(
        self, rows: Sequence[BurdenRow], kind: RecordKind, grounds: Grounds, *, now_ms: int
    ) -> list[BurdenRow]:
        """Stores one disclosure for each pair of a listed person and an order. Returns the people whose disclosure is stored.

        Raises Unavailable.
        """
        if not rows:
            return []
        if self._bus is None:
            raise Unavailable("the disclosure can't be recorded: no connection to NATS")
        subject_ids = [row.subject_id for row in rows]
        orders = await self._store.reading_history(
            partial(queries.orders_of, of_wearers=kind is RecordKind.WEARER, subject_ids=subject_ids)
        )
        who = server.caller().spiffe_id
        await self._disclosures.record(
            self._bus,
            [
                ledger_pb2.Disclosure(
                    disclosure_id=ids.hash_id("statistics", who, order_id, kind.value, subject_id, now_ms),
                    at_ms=now_ms,
                    who=who,
                    legal_basis=grounds.legal_basis,
                    purpose=grounds.purpose.value,
                    reference=grounds.reference or REFERENCE,
                    record_kind=kind.value,
                    record_id=subject_id,
                    order_id=order_id,
                    recipient=who,
                )
                for subject_id in subject_ids
                for order_id in sorted(orders.get(subject_id, ()))
            ],
        )
        return [row for row in rows if orders.get(row.subject_id)]


def _grounds(request: statistics_pb2.ListBurdensRequest, kind: RecordKind, now_ms: int) -> Grounds:
    """The grounds of a request. Raises InvalidField if they don't allow it."""
    given = request.grounds
    try:
        return check_grounds(given.legal_basis, PURPOSES.get(given.purpose), given.reference, kind=kind, now_ms=now_ms)
    except InvalidField as error:
        raise error.under("grounds") from None
