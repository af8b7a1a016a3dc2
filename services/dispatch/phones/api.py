"""gRPC edges of protected persons' phones: notices, what the phones say about themselves, and what happened in an incident.

The warning leg serves the notices and their receipts. The police leg serves the states of phones, stored in its database, and the
summaries of incidents. The other legs refuse both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import astuple
from functools import partial
from typing import Any

import sqlalchemy as sa

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, PermissionDenied, Unavailable
from services.common.storage.rows import RowTarget, write
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import metadata
from services.dispatch.phones import domain
from services.dispatch.phones.domain import PhoneLocation, PhoneScreen, PhoneState, PoliceSummary
from services.dispatch.warning import translate
from services.dispatch.warning.domain import ENDS, InstructedAct, ReceiptKind
from services.dispatch.warning.phones import EndedIncidents, PhoneAccess
from services.dispatch.warning.tables import MessageRow
from tandem.dispatch.v1 import (
    afterwards_pb2,
    afterwards_pb2_grpc,
    phone_notice_pb2,
    phone_notice_pb2_grpc,
    phone_state_pb2,
    phone_state_pb2_grpc,
)

KINDS = {
    phone_notice_pb2.PHONE_DELIVERED: ReceiptKind.DELIVERED,
    phone_notice_pb2.PHONE_DISPLAYED: ReceiptKind.DISPLAYED,
    phone_notice_pb2.PHONE_ANSWERED: ReceiptKind.ACKNOWLEDGED,
}
CHOICES = (1, 2, 3)


class PhoneNoticeApi(phone_notice_pb2_grpc.PhoneNoticeServiceServicer):
    """PhoneNoticeService of one leg."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._access: PhoneAccess | None = None

    def connected(self, access: PhoneAccess) -> None:
        """Sets the notices of the leg, once they are open."""
        self._access = access

    async def WatchPhoneNotices(
        self, request: phone_notice_pb2.WatchPhoneNoticesRequest, context: Context
    ) -> AsyncIterator[phone_notice_pb2.WatchPhoneNoticesResponse]:
        """Streams an entry for each sending of a notice to a device."""
        async with aclosing(self._opened().notices.follow()) as due:
            async for notice in due:
                if notice is None:
                    yield phone_notice_pb2.WatchPhoneNoticesResponse()
                    continue
                yield phone_notice_pb2.WatchPhoneNoticesResponse(
                    notice_id=notice.notice_id,
                    device_id=notice.device_id,
                    expires_at=times.to_timestamp(notice.expires_ms),
                    repetition=notice.repetition,
                    in_app_only=notice.in_app_only,
                )

    async def ListPhoneNotices(
        self, request: phone_notice_pb2.ListPhoneNoticesRequest, context: Context
    ) -> phone_notice_pb2.ListPhoneNoticesResponse:
        """Returns the present instruction to a device, and the earlier notices."""
        notices = self._opened().notices
        device_id = fields.required_id("device_id", request.device_id)
        shown = await notices.of_device(device_id)
        answer = phone_notice_pb2.ListPhoneNoticesResponse(earlier=map(_notice_message, shown.earlier))
        if shown.present is not None:
            answer.present.CopyFrom(_notice_message(shown.present))
        return answer

    async def RecordPhoneReceipt(
        self, request: phone_notice_pb2.RecordPhoneReceiptRequest, context: Context
    ) -> phone_notice_pb2.RecordPhoneReceiptResponse:
        """Records a receipt of a notice."""
        access = self._opened()
        device_id = fields.required_id("device_id", request.device_id)
        notice_id = fields.required_id("notice_id", request.notice_id)
        kind = KINDS.get(request.kind)
        if kind is None:
            raise InvalidField("kind", "must be PHONE_DELIVERED, PHONE_DISPLAYED or PHONE_ANSWERED")
        if (kind is ReceiptKind.ACKNOWLEDGED) != (request.choice in CHOICES) or request.choice not in (0, *CHOICES):
            raise InvalidField("choice", "must be 1, 2 or 3 with PHONE_ANSWERED, else 0")
        message = await access.store.message(notice_id)
        if message is None or not await access.notices.is_to_device(message, device_id):
            raise NotFound("notice_id: is no notice to this device")
        await access.record(message, kind, request.choice)
        return phone_notice_pb2.RecordPhoneReceiptResponse()

    def _opened(self) -> PhoneAccess:
        if not self._leg.policy.warns_persons:
            raise PermissionDenied(f"the {self._leg} leg warns nobody")
        if self._access is None:
            raise Unavailable("the warnings are being opened")
        return self._access


def _notice_message(message: MessageRow) -> phone_notice_pb2.PhoneNotice:
    issued_ms = message.issued_ms or message.due_ms
    instruction = translate.instruction_from_json(message.instruction) if message.instruction else None
    since_ms = instruction.since_ms if instruction else issued_ms
    is_over = message.message_kind in ENDS
    return phone_notice_pb2.PhoneNotice(
        notice_id=message.message_id,
        text=message.text,
        language=message.language,
        sent_at=times.to_timestamp(issued_ms),
        is_over=is_over,
        who=message.who_text,
        where=message.where_text,
        act=message.act_text,
        since=times.to_timestamp(since_ms),
        repeated_at=times.to_timestamp(message.repeated_ms or issued_ms),
        asks_answer=not is_over,
        allows_way_out=instruction is not None and instruction.act is InstructedAct.LEAVE,
    )


MAX_AGE_S = 86_400
MAX_PAGE, USUAL_PAGE = 5_000, 1_000
_LOCATIONS, _SCREENS = frozenset(map(int, PhoneLocation)), frozenset(map(int, PhoneScreen))


class PhoneStateApi(phone_state_pb2_grpc.PhoneStateServiceServicer):
    """PhoneStateService of one leg."""

    def __init__(self, leg: Leg, phones: PhoneStore, clock: MeshClock) -> None:
        self._leg = leg
        self._phones = phones
        self._clock = clock

    async def ReportPhoneState(
        self, request: phone_state_pb2.ReportPhoneStateRequest, context: Context
    ) -> phone_state_pb2.ReportPhoneStateResponse:
        """Stores what a phone says about itself."""
        _require_police(self._leg)
        device_id = fields.required_id("device_id", request.device_id)
        if request.location not in _LOCATIONS:
            raise InvalidField("location", "is no PhoneLocation (example: PHONE_LOCATION_DENIED)")
        if request.screen not in _SCREENS:
            raise InvalidField("screen", "must be PHONE_SCREEN_OPEN or PHONE_SCREEN_HIDDEN")
        age_s = int(fields.number("age_s", request.age_s, 0, greatest=MAX_AGE_S))
        now_ms = self._clock.now_ms()
        location, screen = PhoneLocation(request.location), PhoneScreen(request.screen)
        await self._phones.report(device_id, location, screen, at_ms=now_ms - 1000 * age_s, now_ms=now_ms)
        return phone_state_pb2.ReportPhoneStateResponse()

    async def ListPhoneStates(
        self, request: phone_state_pb2.ListPhoneStatesRequest, context: Context
    ) -> phone_state_pb2.ListPhoneStatesResponse:
        """Lists the phones whose state is known."""
        _require_police(self._leg)
        admit(self._leg)
        for name, value in (("device_id", request.device_id), ("page_token", request.page_token)):
            if value:
                fields.required_id(name, value)
        size = int(fields.number("page_size", request.page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
        found = await self._phones.states(
            request.device_id, size + 1, after=request.page_token, now_ms=self._clock.now_ms()
        )
        page = found[:size]
        return phone_state_pb2.ListPhoneStatesResponse(
            phones=map(_state_message, page), next_page_token=page[-1].device_id if len(found) > size else ""
        )


def _require_police(leg: Leg) -> None:
    """Raises PermissionDenied unless the leg is the police's, whose phones of protected persons these are."""
    if not leg.policy.advises_persons:
        raise PermissionDenied(f"the {leg} leg knows no phones of protected persons: ask the police leg")


def _state_message(state: PhoneState) -> phone_state_pb2.PhoneState:
    return phone_state_pb2.PhoneState(
        device_id=state.device_id,
        location=phone_state_pb2.PhoneLocation.ValueType(state.location),
        location_since=times.to_timestamp(state.location_ms),
        screen=phone_state_pb2.PhoneScreen.ValueType(state.screen),
        screen_since=times.to_timestamp(state.screen_ms),
    )


class AfterwardsApi(afterwards_pb2_grpc.AfterwardsServiceServicer):
    """AfterwardsService of one leg."""

    def __init__(self, leg: Leg, phones: PhoneStore) -> None:
        self._leg, self._phones = leg, phones
        self._ended: EndedIncidents | None = None

    def connected(self, ended: EndedIncidents) -> None:
        """Sets the incidents that are over, once the warnings are open."""
        self._ended = ended

    async def ListNotifiedIncidents(
        self, request: afterwards_pb2.ListNotifiedIncidentsRequest, context: Context
    ) -> afterwards_pb2.ListNotifiedIncidentsResponse:
        """Lists the incidents whose end a device was notified of."""
        if not self._leg.policy.warns_persons:
            raise PermissionDenied(f"the {self._leg} leg warns nobody")
        device_id = fields.required_id("device_id", request.device_id)
        if self._ended is None:
            raise Unavailable("the warnings are being opened")
        return afterwards_pb2.ListNotifiedIncidentsResponse(
            incidents=[
                afterwards_pb2.NotifiedIncident(
                    incident_id=notified.incident_id, order_id=notified.order_id, person_id=notified.person_id
                )
                for notified in await self._ended.of_device(device_id)
            ]
        )

    async def ReadSummary(
        self, request: afterwards_pb2.ReadSummaryRequest, context: Context
    ) -> afterwards_pb2.ReadSummaryResponse:
        """Says what the police did for a person in an incident."""
        _require_police(self._leg)
        incident_id = fields.required_id("incident_id", request.incident_id)
        order_id = fields.required_id("order_id", request.order_id)
        person_id = fields.required_id("person_id", request.person_id)
        found = await self._phones.summary(incident_id, person_id=person_id, order_id=order_id)
        if found is None:
            raise NotFound("incident_id: there is no summary of this incident for this person")
        answer = afterwards_pb2.ReadSummaryResponse(
            began_at=times.to_timestamp(found.began_ms), ended_at=times.to_timestamp(found.ended_ms)
        )
        if found.sent_ms is not None:
            answer.sent_at.CopyFrom(times.to_timestamp(found.sent_ms))
        if found.arrived_ms is not None:
            answer.arrived_at.CopyFrom(times.to_timestamp(found.arrived_ms))
        return answer


STATES_KEPT_MS = 30 * 86_400_000
"""Time for which a state is kept after it began, milliseconds of mesh time: a phone that isn't used any more isn't watched any more."""
_states = sa.Table(
    "phone_states",
    metadata,
    sa.Column("device_id", sa.String, primary_key=True),
    sa.Column("location", sa.Integer, nullable=False),
    sa.Column("location_ms", sa.BigInteger, nullable=False),
    sa.Column("screen", sa.Integer, nullable=False),
    sa.Column("screen_ms", sa.BigInteger, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
)
_INTO = (RowTarget(_states, ("location", "location_ms", "screen", "screen_ms", "at_ms"), newer="at_ms"),)


class PhoneStore:
    """The states of phones, and the summaries of incidents. All methods raise Unavailable if the database refuses."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def report(
        self, device_id: str, location: PhoneLocation, screen: PhoneScreen, *, at_ms: int, now_ms: int
    ) -> None:
        """Stores what a phone says, and deletes states that began long ago."""

        def work(connection: sa.Connection) -> None:
            row = connection.execute(sa.select(_states).where(_states.c.device_id == device_id)).first()
            new = (
                domain.after(_state(row), location, screen, at_ms=at_ms)
                if row
                else domain.first(device_id, location, screen, at_ms=at_ms)
            )
            connection.execute(sa.delete(_states).where(_states.c.at_ms < now_ms - STATES_KEPT_MS))
            values = (int(value) if isinstance(value, int) else value for value in astuple(new))
            write(connection, _INTO, ([tuple(values)],))

        await self._store.transaction(work)

    async def states(self, device_id: str, limit: int, *, after: str, now_ms: int) -> list[PhoneState]:
        """Up to `limit` states by device id, those of ids greater than `after`; with `device_id` that one alone."""
        query = sa.select(_states).where(_states.c.at_ms >= now_ms - STATES_KEPT_MS)
        query = query.where(_states.c.device_id == device_id if device_id else _states.c.device_id > after)
        query = query.order_by(_states.c.device_id).limit(limit)
        return await self._store.reading_history(lambda connection: [_state(row) for row in connection.execute(query)])

    async def summary(self, incident_id: str, *, person_id: str, order_id: str) -> PoliceSummary | None:
        """The summary of an incident for a person; None if she gets none."""
        read = partial(self._store.events, incident_ids=[incident_id])
        events = (await self._store.reading_history(read)).get(incident_id, [])
        return domain.summary(incident_id, events, person_id=person_id, order_id=order_id)


def _state(row: sa.Row[*tuple[Any, ...]]) -> PhoneState:
    device_id, location, location_ms, screen, screen_ms, at_ms = row
    return PhoneState(
        device_id,
        PhoneLocation(location),
        location_ms,
        screen=PhoneScreen(screen),
        screen_ms=screen_ms,
        at_ms=at_ms,
    )
