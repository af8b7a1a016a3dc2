"""The log of requests to local governments for CCTV, and the watch over its deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import grpc.aio
import sqlalchemy as sa
from prometheus_client import Gauge

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.errors import Conflict, FailedPrecondition, InvalidField, NotFound, Unavailable
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Grounds, Purpose, RecordKind
from services.common.privacy.notices import TagBasis
from services.common.rpc import server
from services.common.rpc.identity import Caller
from services.common.running import completed
from services.registry.cctv.domain import WITHIN_MS, CctvEntry, CctvGround, CctvRequest, CctvStep, with_step
from services.registry.disclosure.service import Disclosures
from services.registry.disclosure.translate import parse_grounds
from services.registry.domain.disclosure import Deed
from services.registry.domain.ledger import Disclosure
from services.registry.domain.records import OrderType
from services.registry.keys import DataKey, KeyOwner, Vault
from services.registry.ledger import append_disclosures
from services.registry.records.kinds import ORDERS, TAGS, WEARERS
from services.registry.records.translate import REASON_MAX_CHARS, optional_text, required_text
from services.registry.tables import cctv_entries, cctv_requests, data_keys
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import cctv_pb2, cctv_pb2_grpc

_DONE = (CctvStep.DECLINED.value, CctvStep.WEARER_NOTIFIED.value)


def entry_owner(request_id: str, step: CctvStep) -> KeyOwner:
    """Owner of the key that encrypts the text of an entry."""
    return KeyOwner(cctv_entries.name, f"{request_id}/{step.value}")


def request_digest(connection: sa.Connection, request_id: str) -> bytes | None:
    """Keyed digest of what the caller sent with a request; None if there is no such request."""
    found = sa.select(cctv_requests.c.digest).where(cctv_requests.c.request_id == request_id)
    digest = connection.execute(found).scalar()
    return None if digest is None else bytes(digest)


def add_request(connection: sa.Connection, vault: Vault, request: CctvRequest, *, digest: bytes) -> None:
    """Add a request with its first entry."""
    values = {
        "request_id": request.request_id,
        "wearer_id": request.wearer_id,
        "ground": request.ground.value,
        "government": request.government,
        "digest": digest,
    }
    connection.execute(sa.insert(cctv_requests).values(values))
    add_entry(connection, vault, request)


def add_entry(connection: sa.Connection, vault: Vault, request: CctvRequest) -> None:
    """Add the last entry of a request."""
    entry = request.last
    owner = entry_owner(request.request_id, entry.step).text
    key, sealed = vault.seal_with_new_key(owner, entry.text.encode())
    stored_key = {"owner": owner, "ring": key.ring, "wrapped": key.wrapped}
    connection.execute(sa.insert(data_keys).values({**stored_key, "destroy_at_ms": None, "destroyed_at_ms": None}))
    values = {
        "request_id": request.request_id,
        "step": entry.step.value,
        "number": len(request.entries),
        "at_ms": entry.at_ms,
        "recorded_ms": entry.recorded_ms,
        "recorded_by": entry.recorded_by,
        "sealed_text": sealed,
    }
    connection.execute(sa.insert(cctv_entries).values(values))


def find_request(connection: sa.Connection, request_id: str) -> CctvRequest | None:
    """A request without the texts of its entries; None if there is none."""
    found = select_requests(connection, cctv_requests.c.request_id == request_id)
    return found[0] if found else None


def unfinished_requests(connection: sa.Connection, after_id: str = "") -> list[CctvRequest]:
    """Requests for which a step is still due, in the order in which they were made; with an id, those made after this one."""
    done = sa.exists().where(cctv_entries.c.request_id == cctv_requests.c.request_id, cctv_entries.c.step.in_(_DONE))
    return select_requests(connection, sa.and_(~done, after_request(connection, after_id)))


def after_request(connection: sa.Connection, request_id: str) -> sa.ColumnElement[bool]:
    """Condition for requests that were made after another one. An empty id means all requests, an unknown id none."""
    if not request_id:
        return sa.true()
    found = sa.select(cctv_requests.c.sequence).where(cctv_requests.c.request_id == request_id)
    sequence = connection.execute(found).scalar()
    return sa.false() if sequence is None else cctv_requests.c.sequence > sequence


def select_requests(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    *,
    limit: int | None = None,
    vault: Vault | None = None,
) -> list[CctvRequest]:
    """Requests that meet a condition, in the order in which they were made. With a vault also the texts of their entries."""
    rows = connection.execute(
        sa.select(cctv_requests).where(condition).order_by(cctv_requests.c.sequence).limit(limit)
    ).all()
    entries = _entries(connection, [row.request_id for row in rows], vault)
    return [
        CctvRequest(
            request_id=row.request_id,
            wearer_id=row.wearer_id,
            ground=CctvGround(row.ground),
            government=row.government,
            entries=tuple(entries[row.request_id]),
        )
        for row in rows
    ]


def _entries(
    connection: sa.Connection, request_ids: Sequence[str], vault: Vault | None
) -> Mapping[str, list[CctvEntry]]:
    owner = (
        sa.literal(f"{cctv_entries.name}/").concat(cctv_entries.c.request_id).concat("/").concat(cctv_entries.c.step)
    )
    joined = cctv_entries.outerjoin(data_keys, data_keys.c.owner == owner)
    statement = (
        sa.select(cctv_entries, data_keys.c.ring, data_keys.c.wrapped)
        .select_from(joined)
        .where(cctv_entries.c.request_id.in_(request_ids))
        .order_by(cctv_entries.c.number)
    )
    found: dict[str, list[CctvEntry]] = {request_id: [] for request_id in request_ids}
    for row in connection.execute(statement):
        found[row.request_id].append(
            CctvEntry(
                step=CctvStep(row.step),
                at_ms=row.at_ms,
                recorded_ms=row.recorded_ms,
                recorded_by=row.recorded_by,
                text=_text(row, vault),
            )
        )
    return found


def _text(row: sa.Row[Any], vault: Vault | None) -> str:
    if vault is None or row.ring is None:
        return ""
    owner = entry_owner(row.request_id, CctvStep(row.step)).text
    return vault.unseal(owner, row.sealed_text, DataKey(row.ring, row.wrapped)).decode()


def key_owners(connection: sa.Connection, wearer_id: str) -> Iterable[str]:
    """Owners of the keys that encrypt the texts about a wearer, as text."""
    requests = select_requests(connection, cctv_requests.c.wearer_id == wearer_id)
    return [entry_owner(request.request_id, entry.step).text for request in requests for entry in request.entries]


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
            stored_digest = request_digest(connection, new.request_id)
            if stored_digest not in (None, digest):
                raise Conflict("request_id: this id is stored with different content; entries can't be changed")
            known = find_request(connection, new.request_id)
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
            add_request(connection, vault, request, digest=digest)
            append_disclosures(connection, [disclosure])
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
            request = find_request(connection, request_id)
            if request is None:
                raise NotFound("request_id: no such request")
            after = with_step(request, entry)
            if after is not request:
                add_entry(connection, vault, after)
            return after

        return await self._changed(apply)

    async def list_all(self, after: str, *, only_overdue: bool) -> list[CctvRequest]:
        """Requests about all wearers after another one, without texts: at most LISTED_MAX."""
        now_ms = self._clock.now_ms()

        def read(connection: sa.Connection) -> list[CctvRequest]:
            if not only_overdue:
                return select_requests(connection, after_request(connection, after), limit=LISTED_MAX)
            unfinished = unfinished_requests(connection, after)
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
            mine = sa.and_(cctv_requests.c.wearer_id == wearer_id, after_request(connection, after))
            found = select_requests(connection, mine, vault=vault)
            return [request for request in found if not only_overdue or request.is_overdue(now_ms)][:LISTED_MAX]

        return await self._disclosures.disclose_record(read, who, grounds, kind=WEARERS, record_id=wearer_id)

    async def overdue(self) -> list[CctvRequest]:
        """All requests whose next step is overdue."""
        now_ms = self._clock.now_ms()
        found = await self._transactions.database.visit(unfinished_requests)
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


GOVERNMENT_MAX_CHARS = 100
DETAILS_MAX_CHARS = 1_000
_GROUNDS: Mapping[int, CctvGround] = {
    cctv_pb2.CctvGround.Value(f"CCTV_GROUND_{ground.value}"): ground for ground in CctvGround
}
_STEPS: Mapping[int, CctvStep] = {cctv_pb2.CctvStep.Value(f"CCTV_STEP_{step.value}"): step for step in CctvStep}
_Context = grpc.aio.ServicerContext[Any, Any]


class CctvServicer(cctv_pb2_grpc.CctvServiceServicer):
    """Parses requests of the CctvService, runs the commands and builds the responses."""

    def __init__(self, requests: CctvRequests, clock: MeshClock) -> None:
        self._requests = requests
        self._clock = clock

    async def RequestCctv(
        self, request: cctv_pb2.RequestCctvRequest, context: _Context
    ) -> cctv_pb2.RequestCctvResponse:
        if request.ground not in _GROUNDS:
            raise InvalidField("ground", "is missing or unknown (example: CCTV_GROUND_DUTY_14_1)")
        new = NewRequest(
            request_id=fields.required_id("request_id", request.request_id),
            wearer_id=fields.required_id("wearer_id", request.wearer_id),
            ground=_GROUNDS[request.ground],
            government=required_text("government", request.government, GOVERNMENT_MAX_CHARS),
            details=required_text("details", request.details, DETAILS_MAX_CHARS),
        )
        made, disclosure_id = await completed(self._requests.request(new, server.caller().spiffe_id))
        return cctv_pb2.RequestCctvResponse(request=self._to_proto(made), disclosure_id=disclosure_id)

    async def RecordCctvStep(
        self, request: cctv_pb2.RecordCctvStepRequest, context: _Context
    ) -> cctv_pb2.RecordCctvStepResponse:
        request_id = fields.required_id("request_id", request.request_id)
        step = _STEPS.get(request.step)
        if step is None or step is CctvStep.REQUESTED:
            raise InvalidField("step", "must be PROVIDED, DECLINED, VIEWING_ENDED or WEARER_NOTIFIED")
        at_ms = fields.moment("at", request.at, request.HasField("at"))
        note = optional_text("note", request.note, REASON_MAX_CHARS)
        entry = CctvEntry(
            step=step,
            at_ms=at_ms,
            recorded_ms=self._clock.now_ms(),
            recorded_by=server.caller().spiffe_id,
            text=note,
        )
        changed = await completed(self._requests.add_step(request_id, entry))
        return cctv_pb2.RecordCctvStepResponse(request=self._to_proto(changed))

    async def ListCctvRequests(
        self, request: cctv_pb2.ListCctvRequestsRequest, context: _Context
    ) -> cctv_pb2.ListCctvRequestsResponse:
        after = fields.required_id("after_request_id", request.after_request_id) if request.after_request_id else ""
        if not request.wearer_id:
            found = await self._requests.list_all(after, only_overdue=request.only_overdue)
            return cctv_pb2.ListCctvRequestsResponse(requests=map(self._to_proto, found))
        wearer_id = fields.required_id("wearer_id", request.wearer_id)
        grounds = parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())
        listing = self._requests.list_about(
            server.caller(), grounds, wearer_id, after=after, only_overdue=request.only_overdue
        )
        found, disclosure_id = await completed(listing)
        return cctv_pb2.ListCctvRequestsResponse(requests=map(self._to_proto, found), disclosure_id=disclosure_id)

    def _to_proto(self, request: CctvRequest) -> cctv_pb2.CctvRequest:
        return cctv_pb2.CctvRequest(
            request_id=request.request_id,
            wearer_id=request.wearer_id,
            ground=cctv_pb2.CctvGround.Value(f"CCTV_GROUND_{request.ground.value}"),
            government=request.government,
            entries=[
                cctv_pb2.CctvEntry(
                    step=cctv_pb2.CctvStep.Value(f"CCTV_STEP_{entry.step.value}"),
                    at=times.to_timestamp(entry.at_ms),
                    recorded_at=times.to_timestamp(entry.recorded_ms),
                    recorded_by=entry.recorded_by,
                    text=entry.text,
                )
                for entry in request.entries
            ],
            due_at=None if request.due_ms is None else times.to_timestamp(request.due_ms),
            overdue=request.is_overdue(self._clock.now_ms()),
        )
