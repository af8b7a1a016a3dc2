"""The console's pages of match reviews with a real registry: what they show to whom, answers, stale answers and bad input."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from services.common.rpc import server
from services.console.pages.texts import TEXTS
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.support.console.console import PATIENCE_S, SECRET, ConsoleBench, Visitor, console_bench
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, RegistryMesh, running_registry

pytestmark = pytest.mark.asyncio(loop_scope="module")
ARTICLE = "STALKING_9_1_2"
ADDRESS, OTHER_ADDRESS = "서울특별시 비밀구 숨은로 17", "부산광역시 다른구 딴길 3"


class Opened(NamedTuple):
    """A console whose registry is real."""

    bench: ConsoleBench
    registry: RegistryMesh
    stub: registry_pb2_grpc.RegistryServiceStub

    async def put_wearer(self, number: int, version: int = 1, phone: str = "010-1111-2222") -> None:
        """Puts the Ministry's record of a person."""
        wearer = records.wearer(f"w-{number}", f"78071{number}-1234567", version)
        wearer.name = name(number)
        wearer.birth_date = "1978-07-17"
        wearer.sex = registry_pb2.SEX_MALE
        wearer.phone, wearer.address = phone, ADDRESS
        await self.stub.PutWearer(
            registry_pb2.PutWearerRequest(wearer=wearer), metadata=server.bearer(MOJ, SECRET), wait_for_ready=True
        )

    async def put_order(self, number: int, type_: registry_pb2.OrderType.ValueType) -> None:
        """Puts an order against a respondent of the same name who was born a year later."""
        order = records.order(f"o-{number}", (), national_id="")
        order.type = type_
        order.respondent.name, order.respondent.birth_date = name(number), "1979-07-17"
        order.respondent.address = OTHER_ADDRESS
        await self.stub.PutOrder(
            registry_pb2.PutOrderRequest(order=order), metadata=server.bearer(NPA, SECRET), wait_for_ready=True
        )

    async def pair(
        self, number: int, type_: registry_pb2.OrderType.ValueType = registry_pb2.ORDER_TYPE_STALKING_APPROACH
    ) -> str:
        """Puts both records of a new pair, and returns the id of its case."""
        await self.put_wearer(number)
        await self.put_order(number, type_)
        ((case_id,),) = self.registry.query(f"select case_id from reviews where order_id = 'o-{number}'")  # noqa: S608
        return str(case_id)

    def rows(self) -> int:
        """Number of rows of the ledger."""
        ((count,),) = self.registry.query("select count(*) from ledger")
        return int(count)


def name(number: int) -> str:
    """Name of a person that resembles no other person's."""
    return ("남궁비밀", "황보은밀", "제갈공명", "선우재덕", "독고영재", "사공민철", "최강타")[number]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    with running_registry(tmp_path_factory.mktemp("registry"), 1, env={"TANDEM_DEV_SECRET": SECRET}) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory, registry: RegistryMesh) -> AsyncIterator[Opened]:
    await registry.service.ready(registry.address)
    target = f"ipv4:{registry.address}"
    async with (
        console_bench(tmp_path_factory.mktemp("console"), {"TANDEM_REGISTRY": target}) as bench,
        server.channel(registry.address) as channel,
    ):
        yield Opened(bench, registry, registry_pb2_grpc.RegistryServiceStub(channel))


def form_of(page: str, act: str) -> dict[str, str]:
    """The hidden fields of an answer's form."""
    (form,) = re.findall(rf'<details name="act" id="act-{act}".*?</details>', page, re.S)
    return {
        field: value
        for field, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
        if field != "csrf"
    }


async def show(visitor: Visitor, case_id: str, legal_basis: str = ARTICLE) -> str:
    """Opens both records, as the button of the list does."""
    await visitor.read("/reviews")
    status, page = await visitor.post(f"/reviews/{case_id}", legal_basis=legal_basis)
    assert status == 200, page
    return page


def words(page: str) -> str:
    """The text of a page without markup, scripts and repeated spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))


async def test_the_queue_shows_reasons_and_no_personal_data(opened: Opened) -> None:
    case_id, before = await opened.pair(0), opened.rows()
    for language in ("ko", "en"):
        async with opened.bench.visitor("police") as visitor:
            visitor.client.cookie_jar.update_cookies({"tandem_language": language})
            page = await visitor.read("/reviews") + await visitor.read(f"/reviews/{case_id}")
        for key in ("agree_NAME_EQUAL", "agree_BIRTH_DATE_YEAR_APART", "basis_STALKING_9_1_2", "review_open"):
            assert TEXTS[key][language == "en"] in page, key
        assert 'class="for" x="50.0"' in page and case_id in page
        assert name(0) not in page and "1978" not in page and ADDRESS not in page
    assert opened.rows() == before


async def test_each_desk_sees_both_records_with_their_differences_marked(opened: Opened) -> None:
    case_id, before = await opened.pair(1), opened.rows()
    async with opened.bench.visitor("police") as police:
        page = await show(police, case_id)
    assert page.count("황보은밀") == 2 and "197<mark>8</mark>-07-17" in page and "197<mark>9</mark>-07-17" in page
    assert OTHER_ADDRESS in page and ADDRESS not in page and TEXTS["review_withheld"][0] in page
    async with opened.bench.visitor("probation") as probation:
        page = await show(probation, case_id)
    assert ADDRESS in page and OTHER_ADDRESS not in page
    for key in ("causes_confirm", "causes_no_tag", "ring_RESPOND", "causes_reject", "event_REVIEW_OPENED"):
        assert TEXTS[key][0] in page, key
    assert "2,000 m" in page and "100 m" in page
    assert opened.rows() == before + 4


@pytest.mark.parametrize("role", ["reviewer", "operator"])
async def test_no_other_role_sees_a_review(opened: Opened, role: str) -> None:
    case_id = await opened.pair(1)
    async with opened.bench.visitor("police") as police:
        form = form_of(await show(police, case_id), "confirm")
    before = opened.rows()
    async with opened.bench.visitor(role) as visitor:
        if role == "reviewer":  # so that the role is refused, and not the form's token
            await visitor.read("/search")
        for path in ("/reviews", f"/reviews/{case_id}"):
            status, text, _ = await visitor.get(path)
            assert status == 403 and "황보" not in text
        for path in (f"/reviews/{case_id}", f"/reviews/{case_id}/decide"):
            status, text = await visitor.post(path, **form, reason="why")
            assert status == 403 and "황보" not in text
    assert opened.rows() == before


async def test_an_answer_is_decided_and_its_consequence_stated(opened: Opened) -> None:
    case_id = await opened.pair(2)
    async with opened.bench.visitor("police", "kim") as police, opened.bench.visitor("probation", "lee") as probation:
        form, stale = form_of(await show(police, case_id), "confirm"), form_of(await show(probation, case_id), "reject")
        status, _ = await police.post(f"/reviews/{case_id}/decide", **form, reason='same <b onclick="x()">file</b>')
        assert status == 303
        assert TEXTS["done_confirm"][0] in await police.read("/reviews?done=confirm")
        # The same form, sent once more by the browser, is answered alike.
        assert (await police.post(f"/reviews/{case_id}/decide", **form, reason="same file"))[0] == 303

        # The other desk's page is from before the decision.
        status, page = await probation.post(f"/reviews/{case_id}/decide", **stale, reason="other file")
        assert status == 409
        assert TEXTS["review_DECIDED_MEANWHILE"][0] in page and 'data-state="CONFIRMED"' in page
        assert "spiffe://npa/desk/console/kim" in page and "&lt;b onclick=" in page and "<b onclick" not in page
        undo = form_of(page, "undo")
        assert (await probation.post(f"/reviews/{case_id}/decide", **undo, reason="not sure"))[0] == 303
        assert TEXTS["done_undo"][0] in await probation.read("/reviews?done=undo")
        page = await show(probation, case_id)
    assert 'data-state="OPEN"' in page and TEXTS["decided_UNDO"][0] in page and TEXTS["event_WITHDRAWN"][0] in page


async def test_an_answer_about_changed_records_is_refused_with_the_new_records(opened: Opened) -> None:
    case_id = await opened.pair(3)
    async with opened.bench.visitor("police") as police:
        form = form_of(await show(police, case_id), "reject")
        await opened.put_wearer(3, version=2, phone="010-7777-8888")
        status, page = await police.post(f"/reviews/{case_id}/decide", **form, reason="two persons")
        assert status == 409
        assert TEXTS["review_EVIDENCE_CHANGED"][0] in page and "010-7777-8888" in page
        assert 'value="two persons"' in page  # the reason needn't be typed once more
        assert TEXTS["review_compared"][0] in page and TEXTS["review_unchanged"][0] in page
        assert (await police.post(f"/reviews/{case_id}/decide", **form_of(page, "reject"), reason="yes"))[0] == 303
        assert case_id in await police.read("/reviews?state=decided")


async def test_bad_input_is_answered_and_shows_nothing(opened: Opened) -> None:
    case_id = await opened.pair(4)
    async with opened.bench.visitor("police") as police:
        form = form_of(await show(police, case_id), "confirm")
        before = opened.rows()
        for legal_basis in ("", "STALKING_4", "MY_OWN_WISH", "TAG_16_2", "<script>"):
            status, page = await police.post(f"/reviews/{case_id}", legal_basis=legal_basis)
            assert status == 400 and TEXTS["review_wrong_legal_basis"][0] in page
            assert name(4) not in page and "<script>" not in page
        status, page = await police.post("/reviews/case-none", legal_basis=ARTICLE)
        assert status == 404 and TEXTS["review_404"][0] in page
        assert (await police.post("/reviews/" + "x" * 65, legal_basis=ARTICLE))[0] == 400
        for wrong in ({"act": "maybe"}, {"evidence": "zz"}, {"since": "yesterday"}, {"since": "9" * 30}):
            assert (await police.post(f"/reviews/{case_id}/decide", **(form | wrong), reason="why"))[0] == 400, wrong
        assert opened.rows() == before
        for reason in ("", "   ", "x" * 501):
            status, page = await police.post(f"/reviews/{case_id}/decide", **form, reason=reason)
            assert status == 400 and TEXTS["review_wrong_reason"][0] in page, reason
        assert 'data-state="OPEN"' in await show(police, case_id)


async def test_the_reader_names_the_article_of_an_order_without_a_type(opened: Opened) -> None:
    case_id = await opened.pair(5, registry_pb2.ORDER_TYPE_UNSPECIFIED)
    async with opened.bench.visitor("probation") as probation:
        page = await probation.read(f"/reviews/{case_id}")
        assert TEXTS["review_choose"][0] in page and 'value="STALKING_4"' in page and "TAG_16_2" not in page
        status, page = await probation.post(f"/reviews/{case_id}", legal_basis="STALKING_4")
        assert status == 200 and name(5) in page and TEXTS["basis_STALKING_4"][0] in page


async def test_a_korean_page_has_no_english_word(opened: Opened) -> None:
    case_id = await opened.pair(6)
    async with opened.bench.visitor("police") as police:
        pages = [await show(police, case_id), await police.read("/reviews"), await police.read(f"/reviews/{case_id}")]
    for page in pages:
        (main,) = re.findall(r"<main.*?</main>", page, re.S)
        text = words(re.sub(r"<code>.*?</code>", "", main))
        assert set(re.findall(r"[A-Za-z]+", text)) <= {"m"}, text


async def test_the_live_page_tells_how_many_reviews_wait_and_no_reviewer(opened: Opened) -> None:
    await opened.pair(6)
    ((count,),) = opened.registry.query("select count(*) from reviews where state = 'OPEN'")
    for role in ("police", "probation"):
        async with opened.bench.visitor(role) as visitor:
            reviews = await _until_waiting(visitor, int(count))
            assert reviews["alarmed"] == 0 and reviews["since_ms"] > 0
            assert f"{count} · " in await visitor.read("/search")
    async with opened.bench.visitor("reviewer") as reviewer, reviewer.stream() as messages:
        _, message = await anext(messages)
        assert message["reviews"] is None
        assert 'id="review-badge"' not in await reviewer.read("/search")


async def _until_waiting(visitor: Visitor, count: int) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S), visitor.stream() as messages:
        async for _, message in messages:
            if message["reviews"] and message["reviews"]["open"] == count:
                return dict(message["reviews"])
    raise AssertionError("the stream ended")


async def test_a_registry_that_is_away_is_said_and_nothing_is_guessed(tmp_path: Path) -> None:
    async with console_bench(tmp_path) as bench, bench.visitor("police") as visitor:
        await visitor.read("/search")
        status, page = await visitor.post("/reviews/case-1", legal_basis=ARTICLE)
        assert status == 503 and TEXTS["review_503"][0] in page
        form = {"act": "confirm", "evidence": "00", "since": "1", "reason": "why", "legal_basis": ARTICLE}
        status, page = await visitor.post("/reviews/case-1/decide", **form)
        assert status == 503 and TEXTS["review_503"][0] in page
        async with visitor.stream() as messages:
            _, message = await anext(messages)
            assert message["reviews"] is None and "reviews" in message["away"]
