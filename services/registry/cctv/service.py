"""Commands on the log of requests for CCTV, and the watch over its deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import sqlalchemy as sa
from prometheus_client import Gauge

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Grounds, Purpose, RecordKind
from services.common.privacy.notices import TagBasis
from services.common.rpc.errors import Conflict, FailedPrecondition, NotFound, Unavailable
from services.common.rpc.identity import Caller
from services.registry.cctv import domain, store
from services.registry.cctv.domain import WITHIN_MS, CctvEntry, CctvGround, CctvRequest, CctvStep
from services.registry.cctv.tables import cctv_requests
from services.registry.disclosure.domain import Deed
from services.registry.disclosure.service import Disclosures
from services.registry.domain import OrderType
from services.registry.ledger import store as ledger
from services.registry.ledger.chain import Disclosure
from services.registry.records.kinds import ORDERS, TAGS, WEARERS
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet

LEGAL_BASIS = "TAG_16_3_2"
LISTED_MAX = 100
CHECK_INTERVAL_S = 30.0
"""How often overdue requests are looked for, seconds of wall time."""

_T = TypeVar("_T")


class NewRequest(NamedTuple):
    """A request for CCTV, as the location tracking centre sends it."""

    request_id: str
    wearer_id: str
    ground: CctvGround
    government: str
    details: str


class CctvRequests:
    """The log of requests for CCTV."""

    def __init__(self, transactions: Transactions, disclosures: Disclosures, *, clock: MeshClock) -> None:
        self._transactions = transactions
        self._disclosures = disclosures
        self._clock = clock

    async def request(self, new: NewRequest, by: str) -> tuple[CctvRequest, str]:
        """Enter a request. Returns it with the id of its row in the ledger. A repeated request changes nothing.

        Raises NotFound, Conflict if its id has other content, FailedPrecondition if the law gives no such request for the wearer.
        """
        vault, now_ms = self._transactions.vault, self._clock.now_ms()
        digest = vault.digest(json.dumps(new, default=lambda ground: ground.value).encode())
        disclosure = _row(new, by, now_ms)

        def apply(connection: sa.Connection) -> CctvRequest:
            stored_digest = store.digest_of(connection, new.request_id)
            if stored_digest not in (None, digest):
                raise Conflict("request_id: this id is stored with different content; entries can't be changed")
            known = store.find(connection, new.request_id)
            if known is not None:
                # The caller has sent the details again. The notes of the steps are for a reader with grounds, and a row of the ledger.
                first, *steps = known.entries
                return replace(known, entries=(replace(first, text=new.details), *steps))
            _require_ground(WorkingSet(connection, vault), new.wearer_id, now_ms)
            first = CctvEntry(
                step=CctvStep.REQUESTED, at_ms=now_ms, recorded_ms=now_ms, recorded_by=by, text=new.details
            )
            request = CctvRequest(
                request_id=new.request_id,
                wearer_id=new.wearer_id,
                ground=new.ground,
                government=new.government,
                entries=(first,),
            )
            store.add_request(connection, vault, request, digest=digest)
            ledger.append(connection, [disclosure])
            return request

        request = await self._changed(apply)
        self._disclosures.note_appended([disclosure])
        return request, disclosure.disclosure_id

    async def add_step(self, request_id: str, entry: CctvEntry) -> CctvRequest:
        """Enter the next step of a request. A repeated step changes nothing. Raises NotFound, FailedPrecondition, InvalidField.

        The returned request has the text of the new entry alone: reading the others needs grounds, and a row of the ledger.
        """
        vault = self._transactions.vault

        def apply(connection: sa.Connection) -> CctvRequest:
            request = store.find(connection, request_id)
            if request is None:
                raise NotFound("request_id: no such request")
            after = domain.with_step(request, entry)
            if after is not request:
                store.add_entry(connection, vault, after)
            return after

        return await self._changed(apply)

    async def list_all(self, after: str, *, only_overdue: bool) -> list[CctvRequest]:
        """Requests about all wearers after another one, without texts: at most LISTED_MAX."""
        now_ms = self._clock.now_ms()

        def read(connection: sa.Connection) -> list[CctvRequest]:
            if not only_overdue:
                return store.select(connection, store.after(connection, after), limit=LISTED_MAX)
            unfinished = store.unfinished(connection, after)
            return [request for request in unfinished if request.is_overdue(now_ms)][:LISTED_MAX]

        return await self._transactions.database.visit(read)

    async def list_about(
        self, who: Caller, grounds: Grounds, wearer_id: str, *, after: str, only_overdue: bool
    ) -> tuple[list[CctvRequest], str]:
        """Requests about a wearer with their texts, at most LISTED_MAX, and the id of the disclosure in the ledger."""
        vault, now_ms = self._transactions.vault, self._clock.now_ms()

        def read(connection: sa.Connection) -> list[CctvRequest]:
            if wearer_id not in WorkingSet(connection, vault).records.some(WEARERS, (wearer_id,)):
                raise NotFound("wearer_id: no such wearer")
            mine = sa.and_(cctv_requests.c.wearer_id == wearer_id, store.after(connection, after))
            found = store.select(connection, mine, vault=vault)
            return [request for request in found if not only_overdue or request.is_overdue(now_ms)][:LISTED_MAX]

        return await self._disclosures.disclose_record(read, who, grounds, kind=WEARERS, record_id=wearer_id)

    async def overdue(self) -> list[CctvRequest]:
        """All requests whose next step is overdue."""
        now_ms = self._clock.now_ms()
        found = await self._transactions.database.visit(store.unfinished)
        return [request for request in found if request.is_overdue(now_ms)]

    async def _changed(self, apply: Callable[[sa.Connection], _T]) -> _T:
        result = await self._transactions.database.visit(apply)
        self._transactions.signal.notify()
        return result


class CctvWatch:
    """Counts the overdue requests, and logs each once for each overdue step."""

    def __init__(self, requests: CctvRequests, overdue: Gauge) -> None:
        self._requests = requests
        self._overdue = overdue
        self._logged: set[tuple[str, CctvStep]] = set()
        for step in WITHIN_MS:
            overdue.labels(step.value.lower())

    async def run(self) -> None:
        """Look for overdue requests until cancelled."""
        while True:
            with contextlib.suppress(
                Unavailable
            ):  # logged by the database layer; the next check finds the same requests
                await self.check()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def check(self) -> None:
        """Look for overdue requests once."""
        overdue = await self._requests.overdue()
        counts = Counter(request.last.step for request in overdue)
        for step in WITHIN_MS:
            self._overdue.labels(step.value.lower()).set(counts[step])
        keys = {(request.request_id, request.last.step) for request in overdue}
        for request_id, step in sorted(keys - self._logged, key=lambda key: key[0]):
            logger().warning("cctv_step_overdue", request_id=request_id, after_step=step.value)
        self._logged = keys


def _require_ground(working: WorkingSet, wearer_id: str, now_ms: int) -> None:
    """Raises an error unless the law gives a request for CCTV about this wearer, by the tags' basis and the orders' types."""
    if wearer_id not in working.records.opened(WEARERS, (wearer_id,)):
        raise NotFound("wearer_id: no such wearer")
    bases = {tag.basis for tag in working.records.owned(TAGS, [wearer_id]) if tag.removed_at_ms is None}
    held = [case.order_id for case in working.cases.of_wearers([wearer_id]) if case.withdrawn_at_ms is None]
    orders = working.records.opened(ORDERS, held).values()
    types = {order.type for order in orders if not order.is_over(now_ms)}
    if TagBasis.JUDGMENT in bases or OrderType.TAG_CONDITION in types:
        return
    if TagBasis.STALKING_ORDER in bases or OrderType.STALKING_TAG in types:
        raise FailedPrecondition(
            "wearer_id: by the records the tag rests on an order of item 3-2 alone, for which Tag Act 16-3(2) gives no request; "
            "if it rests on a judgment, put the tag with that basis first"
        )


def _row(new: NewRequest, by: str, now_ms: int) -> Disclosure:
    return Disclosure(
        disclosure_id=ids.hash_id("cctv", new.request_id),
        at_ms=now_ms,
        deed=Deed.SHARED.value,
        who=by,
        legal_basis=LEGAL_BASIS,
        purpose=Purpose.ENFORCEMENT.value,
        reference=new.request_id,
        record_kind=RecordKind.WEARER.value,
        record_id=new.wearer_id,
        order_id="",
        recipient=new.government,
        expires_at_ms=0,
        positions=None,
    )
