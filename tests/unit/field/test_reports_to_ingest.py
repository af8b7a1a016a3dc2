"""Reports to ingest: a phone forgets one only when ingest itself refuses it, and a panic waits for no certificate file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from services.common.observability.metrics import unexposed
from services.common.privacy.secret_keys import open_keys
from services.common.rpc.identity import FIELD
from services.common.web.server import served
from services.common.web.tls import PortCaller
from services.field import mesh
from services.field.credentials import PhoneCookies, PhoneSession
from services.field.domain import PhoneReport, ReportOutcome
from services.field.mesh import IngestEndpoint
from services.field.settings import FieldSettings
from services.field.views import REPORT_CONCURRENCY
from tests.support.common.certificates import Authority
from tests.support.field.alone import running_field
from tests.support.field.phone import phone, position

PANIC = PhoneReport("r1", 1_795_603_655_000, alarm="sos")
POSITION = PhoneReport("r2", 1_795_603_655_000, position={"lat": 37.6, "lon": 127.2, "accuracy": 12.0})


@asynccontextmanager
async def endpoint(status: int, content: object, *, retry_after: str = "") -> AsyncIterator[IngestEndpoint]:
    """An endpoint that gives one answer. `content` is JSON, or a text of another server."""

    headers = {"Retry-After": retry_after} if retry_after else {}

    async def answer(_request: web.Request) -> web.Response:
        if isinstance(content, str):
            return web.Response(status=status, text=content, content_type="text/html", headers=headers)
        return web.json_response(content, status=status, headers=headers)

    async with (
        served("ingest", [web.post("/", answer)], "127.0.0.1", port=0, closed=unexposed().http_closed) as port,
        aiohttp.ClientSession() as session,
    ):
        yield IngestEndpoint(session, FieldSettings(ingest_phones=f"http://127.0.0.1:{port}"), panic_session=session)


REFUSED = {"accepted": 0, "refused": [{"index": 0, "field": "lat", "reason": "is wrong"}]}


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (200, {"accepted": 1, "refused": [], "commands": []}, ReportOutcome.STORED),
        (200, REFUSED, ReportOutcome.REFUSED),
        (400, REFUSED, ReportOutcome.REFUSED),
        (403, REFUSED, ReportOutcome.REFUSED),
        (401, REFUSED, ReportOutcome.UNKNOWN_PHONE),
        (429, REFUSED, ReportOutcome.LATER),
        (503, {"reason": "the log is full"}, ReportOutcome.LATER),
        # None of these is ingest's own answer to a report, as of a proxy or by a wrong TANDEM_INGEST_PHONES.
        (200, "<html>welcome</html>", ReportOutcome.LATER),
        (302, "<html>moved</html>", ReportOutcome.LATER),
        (403, "<html>forbidden</html>", ReportOutcome.LATER),
        (404, {"error": "no such path"}, ReportOutcome.LATER),
        (413, "<html>too large</html>", ReportOutcome.LATER),
        (200, {"accepted": 0}, ReportOutcome.LATER),
        (200, [], ReportOutcome.LATER),
    ],
)
async def test_a_report_is_forgotten_only_when_ingest_refuses_it(
    status: int, content: object, outcome: ReportOutcome
) -> None:
    async with endpoint(status, content) as ingest:
        answer = await ingest.report("token", "phone-1", PANIC)
    assert answer.outcome is outcome
    assert (answer.retry_after_s > 0) is (outcome is ReportOutcome.LATER)


async def test_ingest_says_after_which_time_to_retry_within_bounds() -> None:
    for given, wait_s in (("7", 7), ("999999", mesh.MAX_RETRY_AFTER_S), ("soon", mesh.RETRY_AFTER_S)):
        async with endpoint(503, {"reason": "away"}, retry_after=given) as ingest:
            assert (await ingest.report("token", "phone-1", PANIC)).retry_after_s == wait_s


async def test_a_certificate_file_that_cannot_be_read_holds_up_no_panic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "CERTIFICATE_INTERVAL_S", -1.0)
    authority = Authority("mesh")
    (tmp_path / "ca.crt").write_bytes(authority.cert)
    own = authority.service(FIELD).write(tmp_path, "field")

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"accepted": 1})

    async with (
        served(
            "ingest",
            [web.post("/", answer)],
            "127.0.0.1",
            port=0,
            closed=unexposed().http_closed,
            tls=authority.service("spiffe://tandem/service/ingest").write(tmp_path, "ingest"),
            caller=PortCaller(FIELD, tmp_path / "ca.crt"),
        ) as port,
        aiohttp.ClientSession() as session,
    ):
        settings = FieldSettings(
            ingest_phones=f"https://127.0.0.1:{port}",
            tls_cert=own[0],
            tls_key=own[1],
            tls_ca=tmp_path / "ca.crt",
            http_tls_cert=own[0],
            http_tls_key=own[1],
        )
        ingest = IngestEndpoint(session, settings, panic_session=session)
        assert (await ingest.report("token", "phone-1", PANIC)).outcome is ReportOutcome.STORED
        own[0].write_text("half a file")
        with capture_logs() as logs:
            assert (await ingest.report("token", "phone-1", PANIC)).outcome is ReportOutcome.STORED
        assert [line["event"] for line in logs] == ["certificate_unreadable"]
        # A server with a certificate of another authority isn't ingest, and the phone keeps its report.
        other = Authority("other")
        (tmp_path / "ca.crt").write_bytes(other.cert)
        other.service(FIELD).write(tmp_path, "field")
        assert (await ingest.report("token", "phone-1", PANIC)).outcome is ReportOutcome.LATER


async def test_a_repeated_panic_is_one_request_and_no_other_report_holds_it_up() -> None:
    asked: list[str] = []
    has_position = asyncio.Event()
    has_panic = asyncio.Event()
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        form = await request.post()
        asked.append(str(form.get("alarm", "position")))
        (has_panic if "alarm" in form else has_position).set()
        await over.wait()
        return web.json_response({"accepted": 1})

    async with (
        served("ingest", [web.post("/", answer)], "127.0.0.1", port=0, closed=unexposed().http_closed) as port,
        mesh._reporting(1) as session,
        mesh._reporting(1) as panic_session,
    ):
        settings = FieldSettings(ingest_phones=f"http://127.0.0.1:{port}")
        ingest = IngestEndpoint(session, settings, panic_session=panic_session)
        others = [asyncio.ensure_future(ingest.report("token", "phone-1", POSITION)) for _ in range(2)]
        await has_position.wait()  # the only connection for other reports is in use from now on
        sent = [asyncio.ensure_future(ingest.report("token", "phone-1", PANIC)) for _ in range(3)]
        await has_panic.wait()
        over.set()
        assert {answered.outcome for answered in await asyncio.gather(*others, *sent)} == {ReportOutcome.STORED}
    assert sorted(asked) == ["position", "position", "sos"]


async def test_a_phone_hears_what_was_stored_although_ingest_hangs_on_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "REPORT_TIMEOUT", aiohttp.ClientTimeout(total=1.0))
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(str((await request.post()).get("alarm", "")))
        if asked[-1] != "sos":
            await asyncio.Event().wait()
        return web.json_response({"accepted": 1})

    async with (
        served("ingest", [web.post("/", answer)], "127.0.0.1", port=0, closed=unexposed().http_closed) as port,
        running_field(tmp_path, port) as url,
        phone(url) as hers,
    ):
        keys = open_keys(tmp_path / "cookies.key")
        hers.take_cookie(PhoneCookies(keys).seal(PhoneSession("phone-1", "person-1", "t", hers.public)))
        panic = {"id": "p", "at_ms": 5, "alarm": "panic"}
        answered = await hers.report(*(position(n, 37.6, 127.2) for n in range(40)), panic)
    outcomes = {result["id"]: result["outcome"] for result in answered.content["results"]}
    assert outcomes.pop("p") == "stored" and set(outcomes.values()) == {"later"} and len(outcomes) == 40
    assert len(asked) <= 2 * REPORT_CONCURRENCY
