"""The route by which an app says whether it gets positions and is on the screen. It says nothing about where the phone is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from aiohttp import web

from services.common.rpc.errors import InvalidField
from services.field.guard import PhoneCall, PhoneGuard, text_of
from services.field.mesh import WITHIN_S, FieldMesh
from tandem.dispatch.v1 import phone_state_pb2

MAX_AGE_S = 86_400
LOCATIONS = {
    "unknown": phone_state_pb2.PHONE_LOCATION_UNSPECIFIED,
    "good": phone_state_pb2.PHONE_LOCATION_GOOD,
    "vague": phone_state_pb2.PHONE_LOCATION_VAGUE,
    "denied": phone_state_pb2.PHONE_LOCATION_DENIED,
    "unavailable": phone_state_pb2.PHONE_LOCATION_UNAVAILABLE,
}
SCREENS = {"open": phone_state_pb2.PHONE_SCREEN_OPEN, "hidden": phone_state_pb2.PHONE_SCREEN_HIDDEN}


class PhoneHealth(NamedTuple):
    """An app's statement about its phone."""

    location: phone_state_pb2.PhoneLocation.ValueType
    screen: phone_state_pb2.PhoneScreen.ValueType
    age_s: int
    """How long ago this state began, seconds. The phone's clock may be wrong, so it sends no time."""


def parse(content: Any) -> PhoneHealth:
    """Parses an app's statement. Raises InvalidField."""
    location, screen = LOCATIONS.get(text_of(content, "location")), SCREENS.get(text_of(content, "screen"))
    if location is None:
        raise InvalidField("location", f"must be one of {', '.join(LOCATIONS)}")
    if screen is None:
        raise InvalidField("screen", f"must be one of {', '.join(SCREENS)}")
    age_s = content.get("age_s")
    if not isinstance(age_s, int) or isinstance(age_s, bool) or not 0 <= age_s <= MAX_AGE_S:
        raise InvalidField("age_s", f"must be whole seconds from 0 to {MAX_AGE_S}")
    return PhoneHealth(location, screen, age_s)


class HealthPages:
    """The route of a phone's own state: of the phone's own device, and of nobody else's."""

    def __init__(self, guard: PhoneGuard, mesh: FieldMesh) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> Iterable[web.RouteDef]:
        """The route of the state."""
        return (self._guard.post("/api/health", self._health),)

    async def _health(self, ask: PhoneCall) -> web.Response:
        health = parse(ask.content)
        await self._mesh.phone_states.ReportPhoneState(
            phone_state_pb2.ReportPhoneStateRequest(
                device_id=ask.session.device_id,
                location=health.location,
                screen=health.screen,
                age_s=health.age_s,
            ),
            metadata=self._mesh.to_police,
            timeout=WITHIN_S,
        )
        return web.json_response({})
