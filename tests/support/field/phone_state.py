"""The story of a phone's state: what her app says of its phone, at the police's desk and nowhere else."""

from __future__ import annotations

import grpc.aio
import pytest

from services.client import mesh
from services.client.actors import DESKS
from services.client.calls import call
from services.console.pages.texts import TEXTS
from tandem.dispatch.v1 import phone_state_pb2
from tandem.dispatch.v1.phone_state_pb2_grpc import PhoneStateServiceStub
from tests.support.console.console import visiting
from tests.support.field.phone import position
from tests.support.field.scene import Scene, until


async def reaches_the_polices_desk_alone(scene: Scene) -> None:
    """Plays the story with the phone of another person, who is in no joint case."""
    page = f"/watched-devices/{scene.others}"
    denied = {"location": "denied", "screen": "open", "age_s": 60}
    async with scene.enrolled(scene.others) as hers, visiting(scene.mesh.now.console_url) as desk:
        await desk.read("/sign-in")
        assert (await desk.post("/sign-in", role="police", name="duty-1"))[0] == 303
        for bad in (
            {"location": "off"},
            {"location": None},
            {"screen": "locked"},
            {"age_s": -1},
            {"age_s": 86_401},
            {"age_s": True},
            {"age_s": "1"},
        ):
            refused = await hers.ask("POST", "/api/health", denied | bad)
            assert refused.status == 400 and refused.content["field"] in bad
        assert (await hers.ask("POST", "/api/health", [])).status == 400
        assert TEXTS["phone_location"][0] not in await desk.read(page)

        assert (await hers.ask("POST", "/api/health", denied)).status == 200
        text = await desk.read(page)
        assert TEXTS["phone_location_DENIED"][0] in text and TEXTS["phone_location_why"][0] in text
        assert f'data-device="{scene.others}"' in await desk.read("/watched-devices")
        # A state that began earlier, and comes late, changes nothing.
        assert (await hers.ask("POST", "/api/health", denied | {"location": "good", "age_s": 3_600})).status == 200
        assert TEXTS["phone_location_DENIED"][0] in await desk.read(page)

        # A locked screen is a known state: it is on the device's page, and nobody has to look after it.
        locked = {"location": "good", "screen": "hidden", "age_s": 0}
        assert (await hers.ask("POST", "/api/health", locked)).status == 200
        text = await desk.read(page)
        assert TEXTS["phone_hidden"][0] in text and TEXTS["phone_hidden_why"][0] in text
        assert f'data-device="{scene.others}"' not in await desk.read("/watched-devices")

        async def charge_at_the_desk() -> (
            bool
        ):  # ingest may not know the new token yet, and its processes tell each other charges
            await hers.report(position(1, 37.6, 127.2, battery=12))
            return "12 %" in await desk.read(page)

        await until(charge_at_the_desk)
        for bad_charge in (-1, 101, "x", None, True):
            refused = await hers.report(position(2, 37.6, 127.2, battery=bad_charge))
            assert refused.status == 400 and refused.content["field"] == "reports[0].battery"
    async with mesh.channel(scene.mesh.now, "dispatch-police") as channel:
        listing = PhoneStateServiceStub(channel).ListPhoneStates
        everything = phone_state_pb2.ListPhoneStatesRequest()
        listed = await call(listing, everything, scene.clients.identity(DESKS["police"]))
        [state] = [each for each in listed.phones if each.device_id == scene.others]
        assert state.location == phone_state_pb2.PHONE_LOCATION_GOOD
        assert state.screen == phone_state_pb2.PHONE_SCREEN_HIDDEN
        with pytest.raises(grpc.aio.AioRpcError, match="ROLE_MOJ_DESK"):
            await call(listing, everything, scene.clients.identity(DESKS["probation"]))
