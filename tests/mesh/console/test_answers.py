"""A desk answers its own leg on the incident's page, by forms alone, on a whole mesh: to the close, refused, from an old page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from services.client import demo
from services.client import mesh as meshes
from services.client.actors import DESKS
from services.client.mesh import Clients
from services.console.domain import desk
from services.console.pages import refusals
from services.console.pages.texts import TEXTS, Texts
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.mesh import running_mesh
from tests.support.console.console import Visitor, visiting

pytestmark = pytest.mark.asyncio(loop_scope="module")
LEGS = {"probation": 1, "police": 2}


class Scene:
    """The demo up to its offers, and visitors of the console."""

    def __init__(self, url: str, clients: Clients, stage: demo.DemoStage, incident_id: str) -> None:
        self.url = url
        self.clients = clients
        self.stage = stage
        self.incident_id = incident_id

    @property
    def path(self) -> str:
        return f"/incidents/{self.incident_id}"

    @asynccontextmanager
    async def visitor(self, role: str, name: str = "duty-1", language: str = "en") -> AsyncIterator[Visitor]:
        async with visiting(self.url) as visitor:
            visitor.client.headers.update({"Accept-Language": language})
            await visitor.read("/sign-in")
            assert (await visitor.post("/sign-in", role=role, name=name))[0] == 303
            await visitor.read(self.path)
            yield visitor

    async def listed(self, leg: str, subject_id: str) -> dispatch_pb2.Assignment:
        """Returns the assignment as the leg itself knows it."""
        listed = await self.clients.legs[leg].dispatch.ListIncidents(
            dispatch_pb2.ListIncidentsRequest(incident_id=self.incident_id),
            metadata=self.clients.identity(DESKS[leg]),
        )
        own = [assignment for assignment in listed.incidents[0].assignments if assignment.leg == LEGS[leg]]
        return next(assignment for assignment in own if assignment.subject_id == subject_id)

    async def state(self, leg: str, subject_id: str) -> str:
        return dispatch_pb2.AssignmentState.Name((await self.listed(leg, subject_id)).state)

    async def send(self, visitor: Visitor, act: str, form: dict[str, str], **more: str) -> tuple[int, str]:
        return await visitor.post(f"{self.path}/{act}", **(form | more))


def form_of(page: str, act: str, subject_id: str) -> dict[str, str]:
    """Returns the fields that the form of an act sends for a destination, without those that people type."""
    articles = [part.partition("</article>")[0] for part in page.split("<article")[1:]]
    (article,) = [
        article for article in articles if f"<code>{subject_id}</code>" in article and 'class="answers"' in article
    ]
    (form,) = re.findall(rf'<form method="post" action="[^"]*/{act}".*?</form>', article, re.S)
    tags = re.findall(r"<(?:input|button)[^>]*>", form)
    given = [(re.search(r'name="(\w+)"', tag), re.search(r'value="([^"]*)"', tag)) for tag in tags]
    fields = {name[1]: unescape(value[1]) for name, value in given if name and value}
    fields.pop("csrf")
    return fields


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    with running_mesh(tmp_path_factory.mktemp("answers") / "mesh") as mesh:
        plan = demo.new_plan()
        async with meshes.connect(mesh.now) as clients, demo.stage(clients, plan) as stage:
            for name, _, act in demo.STEPS:
                await act(stage)
                if name == "respond":
                    break
            listed = await clients.legs["police"].dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(), metadata=clients.identity("spiffe://tandem/reviewer/test")
            )
            yield Scene(mesh.now.console_url, clients, stage, listed.incidents[0].incident_id)


async def test_a_desk_of_another_agency_can_not_answer_and_reviewers_have_no_forms(scene: Scene) -> None:
    person = scene.stage.person_id
    async with scene.visitor("police") as police:
        forms = {act: form_of(await police.read(scene.path), act, person) for act in ("acknowledge", "reject")}
    async with scene.visitor("probation", language="ko") as probation, scene.visitor("reviewer") as reviewer:
        for act, more in (("acknowledge", {}), ("reject", {"reason": "no"})):
            status, text = await scene.send(probation, act, forms[act], **more)
            assert status == 404 and "소속 기관의 대상이 아닙니다" in text
            status, _ = await scene.send(reviewer, act, forms[act], **more)
            assert status == 403
        assert "<form" in await reviewer.read(scene.path) and "/acknowledge" not in await reviewer.read(scene.path)
    assert await scene.state("police", person) == "OFFERED"


async def test_the_probation_desk_refuses_with_a_reason_and_accepts_the_next_offer(scene: Scene) -> None:
    wearer = scene.stage.wearer_id
    async with scene.visitor("probation", "lee", language="ko") as visitor:
        form = form_of(await visitor.read(scene.path), "reject", wearer)
        for reason, why in ((" ", "why_missing"), ("x" * 201, "why_too_long"), ("a\nb", "why_unreadable")):
            status, text = await scene.send(visitor, "reject", form, reason=reason)
            assert status == 400 and f"{TEXTS['field_reason'][0]}: {TEXTS[why][0]}" in text
            assert re.search(r'<input name="reason"[^>]*aria-invalid="true" aria-describedby="refusal" autofocus', text)
        assert await scene.state("probation", wearer) == "OFFERED"

        assert (await scene.send(visitor, "reject", form, reason="차량 없음"))[0] == 303
        assert await scene.state("probation", wearer) == "ESCALATED"
        # The old page names an offer that has passed to the next in line.
        for act, more in (("reject", {"reason": "again"}), ("acknowledge", {})):
            status, text = await scene.send(visitor, act, form, **more)
            assert status == 409 and TEXTS["answer_OFFERED_ON"][0] in text
        assert (
            await scene.send(visitor, "acknowledge", form_of(await visitor.read(scene.path), "acknowledge", wearer))
        )[0] == 303
        assert (await scene.listed("probation", wearer)).acknowledged_by == "spiffe://moj/desk/console/lee"


async def test_the_police_desk_goes_all_the_way_and_closes_it_by_forms_alone(scene: Scene) -> None:
    person = scene.stage.person_id
    async with scene.visitor("police", "kim") as visitor:
        assert (
            await scene.send(visitor, "acknowledge", form_of(await visitor.read(scene.path), "acknowledge", person))
        )[0] == 303
        page = await visitor.read(scene.path)
        assert TEXTS["send_no_roster"][1] in page, "this leg's agency keeps no roster here"
        sent = form_of(page, "radio", person) | {"unit_name": "patrol 12"}
        assert (await scene.send(visitor, "radio", sent))[0] == 303
        assert await scene.state("police", person) == "DISPATCHED"
        assert "Sent by radio: patrol 12, by kim" in await visitor.read(scene.path)
        for state in desk.PROGRESSION[1:]:
            page = await visitor.read(scene.path)
            form = form_of(page, "progress", person)
            assert form["state"] == state
            assert (await scene.send(visitor, "progress", form))[0] == 303
            assert await scene.state("police", person) == state
        page = await visitor.read(scene.path)
        for act in ("acknowledge", "reject", "progress"):
            with pytest.raises(ValueError, match="unpack"):
                form_of(page, act, person)
        form = form_of(page, "close", person) | {"cause": "OTHER"}
        status, text = await scene.send(visitor, "close", form)
        assert status == 400 and f"{TEXTS['field_note'][1]}: is missing" in text
        assert re.search(r'<option value="OTHER" selected>', text), "the choice is kept"
        assert (await scene.send(visitor, "close", form, cause=""))[0] == 400
        status, _ = await scene.send(visitor, "close", form, note="went home")
        assert status == 303 and await scene.state("police", person) == "CLOSED"
        assert (await scene.listed("police", person)).acknowledged_by == "spiffe://npa/desk/console/kim"


async def test_an_answer_from_an_old_page_is_refused_and_shows_the_current_state(scene: Scene) -> None:
    home = scene.stage.home_destination
    async with scene.visitor("police", "kim") as kim, scene.visitor("police", "park") as park:
        old = await park.read(scene.path)
        assert (await scene.send(kim, "acknowledge", form_of(await kim.read(scene.path), "acknowledge", home)))[
            0
        ] == 303
        page = await kim.read(scene.path)
        sent = form_of(page, "radio", home) | {"unit_name": "patrol 12"}
        assert (await scene.send(kim, "radio", sent))[0] == 303
        # Park's page still shows an offer; Kim has sent a unit since.
        status, text = await scene.send(park, "reject", form_of(old, "reject", home), reason="no car")
        assert status == 409 and TEXTS["answer_OFFERED_ON"][1] in text and 'role="alert"' in text
        assert form_of(text, "progress", home)["state"] == "EN_ROUTE", "the page shows the current state"
        status, text = await scene.send(park, "close", form_of(page, "close", home), cause="EQUIPMENT")
        assert status == 409 and await scene.state("police", home) == "DISPATCHED"
        status, text = await scene.send(park, "acknowledge", form_of(old, "acknowledge", home))
        assert status == 409 and re.search(r"kim sent patrol 12 by radio at \d\d:\d\d:\d\d already", text)
        # A form that is sent twice counts once.
        assert (await scene.send(kim, "radio", sent))[0] == 303
        assert await scene.state("police", home) == "DISPATCHED"
        # A step that no form offers.
        form = form_of(await kim.read(scene.path), "progress", home) | {"state": "APPREHENDED"}
        status, text = await scene.send(kim, "progress", form)
        assert status == 409 and TEXTS["answer_STEP_LEFT_OUT"][1] in text
        assert (await scene.send(kim, "progress", form, state="CLOSED"))[0] == 400


async def test_an_assignment_that_stood_down_can_still_be_closed(scene: Scene) -> None:
    await scene.stage.stand_down()
    home = scene.stage.home_destination
    assert await scene.state("police", home) == "STOOD_DOWN"
    async with scene.visitor("police") as visitor:
        form = form_of(await visitor.read(scene.path), "close", home)
        assert (await scene.send(visitor, "close", form, cause="FALSE_POSITION"))[0] == 303
    assert (await scene.listed("police", home)).close_cause == dispatch_pb2.FALSE_POSITION


async def test_an_unavailable_leg_is_explained_in_words() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "down")
    refusal = refusals.of_leg(error, "close", {})
    assert refusal.status == 503 and "전화" in refusal.words(Texts("ko")) and "down" not in refusal.words(Texts("en"))
    assert (
        refusals.of_leg(
            grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "x"),
            "close",
            {},
        ).status
        == 502
    )
