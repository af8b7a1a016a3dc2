"""A desk sends a unit from the page of an incident, by forms alone, to a real police leg with a roster: the list, who asked whom, by
radio."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.console.pages.texts import TEXTS
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2
from tests.support.common.nats import TestServer
from tests.support.console.console import ConsoleBench, Visitor, console_bench
from tests.support.dispatch.dispatch import PATIENCE_S, SECRET, RunningLeg, alert, publish, running, settings
from tests.support.dispatch.roster_records import office, put, unit

ENGLISH = {key: english for key, (_, english) in TEXTS.items()}
INCIDENT = "incident-1"
PATH = f"/incidents/{INCIDENT}"


class OpenedDesk(NamedTuple):
    """A console with a real police leg, whose roster has two free units and a busy one, and an incident."""

    bench: ConsoleBench
    leg: RunningLeg

    @asynccontextmanager
    async def officer(self, name: str, language: str = "en") -> AsyncIterator[Visitor]:
        """An officer of the police's desk without scripts."""
        async with self.bench.visitor("police", name) as visitor:
            visitor.client.headers.update({"Accept-Language": language})
            yield visitor

    async def own(self) -> dispatch_pb2.Assignment:
        """The assignment of the incident."""
        listed = await self.leg.desk.list(incident_id=INCIDENT)
        return next(to for incident in listed.incidents for to in incident.assignments)

    async def report(self, unit_id: str, status: roster_pb2.UnitStatus.ValueType) -> None:
        """Reports the state of a unit."""
        now = times.to_timestamp(MeshClock().now_ms())
        await self.leg.desk.call("ReportUnit", unit_id=unit_id, status=status, at=now)


@pytest.fixture
def police(nats: TestServer, tmp_path: Any) -> DispatchSettings:
    """Settings of a police leg in which no deadline passes while a slow machine plays a story."""
    given = {f"{name}_within_s": 3600 for name in ("acknowledge", "receive", "dispatch", "answer", "offer")}
    return settings("police", nats, tmp_path / "police", **given)


@pytest_asyncio.fixture
async def opened(bus: Bus, police: DispatchSettings, tmp_path: Any) -> AsyncIterator[OpenedDesk]:
    more = {"TANDEM_DEV_SECRET": SECRET, "TANDEM_DISPATCH_POLICE": f"ipv4:127.0.0.1:{police.port}"}
    async with running(police) as leg, console_bench(tmp_path, more) as bench:
        desk = OpenedDesk(bench, leg)
        await put(leg.desk, [office()])
        await publish(bus, alert(5))  # nobody is on duty yet, so the desk itself is asked
        async with asyncio.timeout(PATIENCE_S):
            while not (await leg.desk.list(incident_id=INCIDENT)).incidents:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await leg.desk.call("PutUnits", units=[unit("car-0"), unit("car-1"), unit("car-2")])
        await desk.report("car-0", roster_pb2.BUSY)
        yield desk


def form_of(page: str, act: str) -> dict[str, str]:
    """The hidden fields of a form, and its chosen unit."""
    found = re.search(rf'<form method="post" action="{PATH}/{act}".*?</form>', page, re.S)
    assert found, act
    fields = dict(re.findall(r'<input type="hidden" name="(assignment|offer|seen)" value="([^"]*)"', found[0]))
    if chosen := re.search(r'name="unit" value="([^"]+)" required checked', found[0]):
        fields["unit"] = chosen[1]
    return fields


def words_of(page: str) -> str:
    """The text of the leg's part of a page, without markup."""
    part = page.partition('class="leg leg-police"')[2].partition("</section>")[0]
    return unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", part)))


async def test_a_unit_is_sent_from_the_list_and_only_what_is_true_is_shown(opened: OpenedDesk) -> None:
    async with opened.officer("kim") as kim:
        page = await kim.read(PATH)
        assert re.findall(r'name="unit" value="([^"]+)"', page) == ["car-1", "car-2", "car-0"], "free ones first"
        assert ENGLISH["BUSY"] in words_of(page) and ENGLISH["unit_position_unknown"] in words_of(page)
        form = form_of(page, "send")
        assert form["unit"] == "car-1", "a free unit is chosen already"
        assert (await kim.post(f"{PATH}/send", **form))[0] == 303
        words = words_of(await kim.read(PATH))
        assert f"car-1 {ENGLISH['UNIT_ASKED']}" in words and "asked by kim at" in words
        assert f" {ENGLISH['DISPATCHED']} " not in words, "to ask a unit is no dispatch"
        assert 'name="state" value="DISPATCHED"' not in await kim.read(PATH)
        roster = await kim.read("/roster")
        row = roster.partition('data-unit="car-1"')[2].partition("</tr>")[0]
        assert ENGLISH["UNIT_ASKED"] in row and INCIDENT in row

        await opened.leg.desk.acknowledge(form["assignment"], "car-1")
        page = await kim.read(PATH)
        assert f"car-1 {ENGLISH['UNIT_ACCEPTED']}" in words_of(page) and "accepted at" in words_of(page)
        assert 'action="/incidents/incident-1/send"' not in page, "a unit has it"
        on_way = {**form_of(page, "progress"), "state": "EN_ROUTE"}
        assert (await kim.post(f"{PATH}/progress", **on_way))[0] == 303
        assert (await opened.own()).state == dispatch_pb2.EN_ROUTE
        assert f"car-1 {ENGLISH['EN_ROUTE']}" in words_of(await kim.read(PATH))
        assert ENGLISH["by_system"] not in words_of(await kim.read(PATH)), "an officer at the console reported it"
        await opened.leg.desk.call("Progress", assignment_id=form["assignment"], state=dispatch_pb2.ON_SCENE)
        assert ENGLISH["by_system"] in words_of(await kim.read(PATH)), "the agency's own system reported it"


async def test_the_second_officer_sees_who_sent_which_unit(opened: OpenedDesk) -> None:
    async with opened.officer("kim") as kim, opened.officer("lee", "ko") as lee:
        page = await lee.read(PATH)
        old, by_radio = form_of(page, "send") | {"unit": "car-2"}, form_of(page, "radio")
        await kim.read(PATH)
        assert (await kim.post(f"{PATH}/send", **form_of(await kim.read(PATH), "send")))[0] == 303
        asked = re.compile(r"kim 님이 \d\d:\d\d:\d\d에 car-1 대원에게 먼저 요청했습니다")
        status, text = await lee.post(f"{PATH}/send", **old)
        assert status == 409 and asked.search(text)
        status, text = await lee.post(f"{PATH}/radio", **by_radio, unit_name="순찰 12호")
        assert status == 409 and asked.search(text) and 'value="순찰 12호"' in text, "what was typed is kept"
        await opened.leg.desk.acknowledge(old["assignment"], "car-1")
        status, text = await lee.post(f"{PATH}/send", accept="application/json", **old)
        assert status == 409 and "car-1 대원이 이미 수락했습니다" in text
        assert [offer.choice.unit_id for offer in (await opened.own()).unit_offers] == ["car-1"]


async def test_without_a_free_unit_the_page_says_so_and_one_is_sent_by_radio(opened: OpenedDesk) -> None:
    async with opened.officer("kim") as kim, opened.officer("lee") as lee:
        form = form_of(await kim.read(PATH), "send")
        await opened.report("car-1", roster_pb2.OFF)
        status, text = await kim.post(f"{PATH}/send", **form)
        assert status == 409 and ENGLISH["answer_NOT_ON_DUTY"] in unescape(text)
        assert 'value="car-1"' not in text, "the list shows who is on duty now"
        await opened.report("car-2", roster_pb2.BUSY)
        page = await kim.read(PATH)
        assert ENGLISH["send_no_free"] in page and "unit" not in form_of(page, "send"), "nobody is chosen"
        await opened.report("car-2", roster_pb2.OFF)
        await opened.report("car-0", roster_pb2.OFF)
        page = await kim.read(PATH)
        assert ENGLISH["send_nobody"] in page
        radio = form_of(page, "radio")
        for name, why in ((" ", "missing"), ("x" * 61, "too_long"), ("a\nb", "unreadable")):
            status, text = await kim.post(f"{PATH}/radio", **radio, unit_name=name)
            assert status == 400 and f"{ENGLISH['field_unit_name']}: {ENGLISH[f'why_unit_name_{why}']}" in text, why
            assert re.search(r'<input name="unit_name"[^>]*aria-invalid="true"', text)
        assert (await kim.post(f"{PATH}/radio", **radio, unit_name=" 순찰 12호 "))[0] == 303
        assert (await opened.own()).state == dispatch_pb2.DISPATCHED
        words = words_of(await kim.read(PATH))
        assert re.search(r"Sent by radio: 순찰 12호, by kim, at \d\d:\d\d:\d\d", words)
        await lee.read(PATH)
        status, text = await lee.post(f"{PATH}/radio", **radio, unit_name="순찰 21호")
        assert status == 409 and re.search(r"kim sent 순찰 12호 by radio at \d\d:\d\d:\d\d already", text)


@pytest.mark.parametrize(
    ("form", "field", "why"),
    [
        ({"unit": ""}, "unit", "why_unit_missing"),
        ({"unit": "<b>"}, "unit", "why_unit_unreadable"),
        ({"offer": "-1"}, "offer", "why_unreadable"),
        ({"assignment": ""}, "assignment", "why_missing"),
    ],
)
async def test_a_form_with_a_wrong_field_is_refused_by_its_name(
    opened: OpenedDesk, form: dict[str, str], field: str, why: str
) -> None:
    async with opened.officer("kim") as kim:
        given = form_of(await kim.read(PATH), "send")
        status, text = await kim.post(f"{PATH}/send", **(given | form))
        assert status == 400 and f"{ENGLISH[f'field_{field}']}: {ENGLISH[why]}" in unescape(text)
        assert (await kim.post(f"{PATH}/send", csrf="forged", **given))[0] == 403
        assert (await kim.post(f"{PATH}/progress", **given, seen="ACKNOWLEDGED", state="DISPATCHED"))[0] == 400
        assert not (await opened.own()).unit_offers


async def test_the_list_is_for_the_own_desk_and_its_own_incident(opened: OpenedDesk) -> None:
    assignment_id = (await opened.own()).assignment_id
    path = f"{PATH}/candidates?assignment={assignment_id}"
    async with opened.officer("kim") as kim, opened.bench.visitor("reviewer") as reviewer:
        status, text, _ = await kim.get(path)
        listed = json.loads(text)
        assert status == 200 and (listed["roster"], listed["nearest"], listed["open"]) == (True, "car-1", True)
        first = next(each for each in listed["units"] if each["id"] == "car-1")
        assert (first["work"], first["class"], first["can"]) == ("FREE", "patrol-car", True)
        assert (await reviewer.get(path))[0] == 403
        assert (await kim.get(f"/incidents/incident-2/candidates?assignment={assignment_id}"))[0] == 404
        status, text, _ = await kim.get(f"{PATH}/candidates")
        assert status == 400 and "assignment: is missing" in text
        assert (await kim.get(f"{PATH}/candidates?assignment=unknown"))[0] == 404
