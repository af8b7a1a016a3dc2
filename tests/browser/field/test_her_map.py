"""Her map in a real browser, as on a telephone, on a real mesh: nothing before a notice, the region with it, nothing after its end.

`make test-browser` runs it; it needs Chromium and Node.js. With TANDEM_SHOTS it saves its pictures in that folder.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from services.client.actors import DESKS, NPA_RECORDS
from services.client.calls import call
from tandem.registry.v1 import enrolment_pb2, registry_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.mesh import RunningMesh, running_mesh
from tests.support.dispatch.chase import HOME, Chase, between, chase, north_of
from tests.support.field.her_page import PRESENT, SENT, UNLOCK
from tests.support.field.router import router
from tests.support.field.scene import until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
PAGE = "hers"
TO_STAY = "/밖으로 나가지|안에 계십시오/"
"""Acts that keep her inside, as a JavaScript pattern."""
WAY_OUT = "#map svg .way-out"
JUDGMENT: dict[str, Any] = {
    "basis": registry_pb2.TAG_BASIS_JUDGMENT,
    "order_type": registry_pb2.ORDER_TYPE_TAG_CONDITION,
}
"""A tag and an order that are grounds for a notice of the Ministry."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, packages: None) -> Iterator[RunningMesh]:
    """A mesh with a router, for the way out."""
    with (
        router() as url,
        running_mesh(tmp_path_factory.mktemp("browser") / "mesh", settings={"TANDEM_OSRM_URL": url}) as running,
    ):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[Browser]:
    async with browser() as made:
        yield made


async def clean(seen: Browser) -> None:
    found = [fault for fault in await seen("axe", page=PAGE) if fault["impact"] in ("serious", "critical")]
    assert found == []
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not await seen("eval", page=PAGE, expression=wide)


async def shot(seen: Browser, name: str) -> None:
    if folder := os.environ.get("TANDEM_SHOTS"):
        await seen("eval", page=PAGE, expression="void document.querySelector('#map').scrollIntoView()")
        await seen("shot", page=PAGE, path=f"{ROOT / folder}/{name}.png")


async def text(seen: Browser, selector: str) -> str:
    return " ".join(await seen("text", page=PAGE, selector=selector))


async def connect(opened: Browser, mesh: RunningMesh, chased: Chase) -> None:
    """Opens the app on a phone of the chase's person, at her home, and connects it."""
    device = registry_pb2.Device(device_id=f"phone-{chased.run_id}", person_id=chased.person_id, source_version=1)
    await call(
        chased.clients.registry.PutDevice,
        registry_pb2.PutDeviceRequest(device=device),
        chased.clients.identity(NPA_RECORDS),
    )
    stub = EnrolmentServiceStub(await chased.channel("registry"))
    issue = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device.device_id)
    code = (await call(stub.IssueEnrolmentCode, issue, chased.clients.identity(DESKS["police"]))).code
    place: dict[str, Any] = {"latitude": HOME[0], "longitude": HOME[1], "accuracy": 10}
    await opened("phone", page=PAGE, url=mesh.now.field_url, language="ko", at=place)
    await opened("wait", page=PAGE, selector="#enrol:not([hidden])")
    await opened("fill", page=PAGE, selector="#code", value=code)
    await opened("click", page=PAGE, selector="#enrol-form button")
    await opened("wait", page=PAGE, selector=SENT)


async def speak(opened: Browser, language: str) -> None:
    """Chooses a language in the app."""
    change = f"s.value = '{language}', void s.dispatchEvent(new Event('change'))"
    await opened("eval", page=PAGE, expression=f"(s => {{ {change} }})(document.querySelector('#language'))")


async def test_the_map_comes_with_the_notice_says_what_it_is_and_goes_with_it(
    mesh: RunningMesh, opened: Browser
) -> None:
    async with chase(mesh, **JUDGMENT) as chased:
        await connect(opened, mesh, chased)
        far = between(north_of(HOME, 2_400), north_of(HOME, 1_800), 20)  # so slowly that no contact is predicted
        await chased.drive(far, until_ago_s=140, every_s=15)
        await opened("wait", page=PAGE, selector=PRESENT)
        assert await opened("eval", page=PAGE, expression="document.querySelector('#map').hidden")

        await chased.drive(between(far[-1], north_of(HOME, 450), 8), until_ago_s=20, every_s=15)
        await opened("wait", page=PAGE, selector="#map:not([hidden]) svg .region")
        assert "북쪽" in await text(opened, "#map-said p")
        assert "색칠된 범위" in await text(opened, "#map-region")
        assert "전자장치부착법 제36조제4항" in await text(opened, "#map-law")
        # He comes nearer, and she is told to stay inside: nothing on the map leads her out.
        await chased.drive(between(north_of(HOME, 450), north_of(HOME, 85), 4), until_ago_s=0, every_s=5)
        await opened("until", page=PAGE, condition=f"{TO_STAY}.test(document.querySelector('#present .act').innerText)")
        await opened("wait", page=PAGE, selector="#map:not([hidden]) svg .region")
        assert "남쪽" not in await text(opened, "#map-said p")
        assert await opened("eval", page=PAGE, expression=f"document.querySelectorAll('{WAY_OUT}').length") == 0
        await clean(opened)
        await shot(opened, "her-app-map-inside-ko")

        # Whatever makes the page ask, a region leaves for it in time: she looks at it again and again, and opens the app once more.
        for _ in range(5):
            await opened("eval", page=PAGE, expression=UNLOCK)
        await opened("open", page=PAGE, url=mesh.now.field_url)
        await opened("wait", page=PAGE, selector="#map:not([hidden]) svg .region")
        assert (await opened("seen"))["refusals"] == []

        await chased.end_order()
        await opened("until", page=PAGE, condition="document.querySelector('#map').hidden")
        found = await opened("seen")
        assert found["origins"] == [mesh.now.field_url] and not [fault for fault in found["faults"] if "Error" in fault]


async def test_with_an_instruction_to_leave_the_map_shows_the_way_out(mesh: RunningMesh, opened: Browser) -> None:
    async with chase(mesh, **JUDGMENT) as chased:
        await connect(opened, mesh, chased)
        # He drives up, and walks from 640 m on: there is time to leave, and no help before him.
        driven = between(north_of(HOME, 2_400), north_of(HOME, 640), 20)
        await chased.drive([*driven, *between(driven[-1], north_of(HOME, 500), 7)], until_ago_s=0, every_s=15)
        await opened("wait", page=PAGE, selector=WAY_OUT)
        assert "떠나" in await text(opened, "#present .act")
        assert "남쪽" in await text(opened, "#map-said p")
        # He is in the north, and the router leads her to the east and south.
        await opened("wait", page=PAGE, selector="#map svg .road")
        assert "점선" in await text(opened, "#map-said p")
        await clean(opened)
        await shot(opened, "her-app-map-ko")
        await speak(opened, "en")

        async def in_english() -> bool:
            return "in the north" in await text(opened, "#map-said p")

        await until(in_english)
        assert "article 36(4)" in await text(opened, "#map-law")
        await clean(opened)
        await shot(opened, "her-app-map-en")
