"""gRPC edge of what protected persons' phones say about themselves. The police leg serves it; the other legs refuse it."""

from __future__ import annotations

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.rpc.errors import InvalidField, PermissionDenied
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.api import Context, admit
from services.dispatch.phones.domain import PhoneLocation, PhoneScreen, PhoneState
from services.dispatch.phones.store import PhoneStore
from tandem.dispatch.v1 import phone_state_pb2, phone_state_pb2_grpc

MAX_AGE_S = 86_400
MAX_PAGE, USUAL_PAGE = 5_000, 1_000
_LOCATIONS, _SCREENS = frozenset(map(int, PhoneLocation)), frozenset(map(int, PhoneScreen))


class PhoneStateApi(phone_state_pb2_grpc.PhoneStateServiceServicer):
    """PhoneStateService of one leg."""

    def __init__(self, leg: Leg, phones: PhoneStore, clock: MeshClock) -> None:
        self._leg, self._phones, self._clock = leg, phones, clock

    async def ReportPhoneState(
        self, request: phone_state_pb2.ReportPhoneStateRequest, context: Context
    ) -> phone_state_pb2.ReportPhoneStateResponse:
        """Stores what a phone says about itself."""
        require_police(self._leg)
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
        require_police(self._leg)
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
            phones=map(_to_proto, page), next_page_token=page[-1].device_id if len(found) > size else ""
        )


def require_police(leg: Leg) -> None:
    """Raises PermissionDenied unless the leg is the police's, whose phones of protected persons these are."""
    if not leg.policy.advises_persons:
        raise PermissionDenied(f"the {leg} leg knows no phones of protected persons: ask the police leg")


def _to_proto(state: PhoneState) -> phone_state_pb2.PhoneState:
    return phone_state_pb2.PhoneState(
        device_id=state.device_id,
        location=phone_state_pb2.PhoneLocation.ValueType(state.location),
        location_since=times.to_timestamp(state.location_ms),
        screen=phone_state_pb2.PhoneScreen.ValueType(state.screen),
        screen_since=times.to_timestamp(state.screen_ms),
    )
