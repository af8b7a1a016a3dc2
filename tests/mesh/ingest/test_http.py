"""HTTP endpoint of a real ingest: a report answered 200 is in the log; a refused request gets its reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from yarl import URL

from services.common import times
from services.common.rpc import server
from tandem.common.v1 import command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.common.certificates import Authority
from tests.support.common.crowds import ELSEWHERE, HERE, crowd
from tests.support.common.nats import running_server
from tests.support.common.processes import spawn
from tests.support.ingest.ingest import (
    SECRET,
    WITHIN_S,
    Client,
    IngestMesh,
    create_streams,
    ingest_on_its_own_server,
    load,
    now_ms,
)

TOKEN, OLD_TOKEN = "token-of-phone", "token-of-yesterday"
OTHERS_TOKEN, REVOKED_TOKEN = "token-of-other", "token-of-gone"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LAT, LON = "37.1234567", "127.7654321"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestMesh]:
    """An ingest for the tests of this file. Its log must never quote a token or a position."""
    with ingest_on_its_own_server(tmp_path_factory.mktemp("http")) as running:
        yield running
        log = running.service.log()
        assert not any(text in log for text in ("Traceback", "never retrieved", "http_failed", "token-of-", LAT, LON))


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        await register(mesh, connected)
        yield connected


async def register(mesh: IngestMesh, client: Client) -> None:
    """Registers the phones, and returns once the endpoint knows them."""
    await client.route("gone", **phone(REVOKED_TOKEN), revoked=True)
    await client.route("other", **phone(OTHERS_TOKEN))
    await client.route("phone", **phone(TOKEN, token(OLD_TOKEN, now_ms() - 1)))
    await client.route("tag")
    until = time.monotonic() + WITHIN_S
    while (await ask(mesh, headers=BEARER, id="phone"))[0] == 401:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


def phone(of: str, *more: log_pb2.DeviceToken) -> dict[str, Any]:
    return {"vendor_id": "", "kind": log_pb2.PROTECTIVE_DEVICE, "tokens": [token(of), *more]}


def token(text: str, valid_until_ms: int = 0) -> log_pb2.DeviceToken:
    return log_pb2.DeviceToken(sha256=hashlib.sha256(text.encode()).digest(), valid_until_ms=valid_until_ms)


@asynccontextmanager
async def answered(
    mesh: IngestMesh, path: str = "/", method: str = "GET", *, connect_from: str = HERE, **more: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(local_addr=(connect_from, 0)), timeout=aiohttp.ClientTimeout(WITHIN_S)
        ) as session,
        session.request(method, URL(mesh.http_url + path, encoded=True), **more) as answer,
    ):
        yield answer


async def ask(
    mesh: IngestMesh, path: str = "/", headers: Any = None, *, connect_from: str = HERE, **parameters: str
) -> tuple[int, Any]:
    """Sends an OsmAnd request and returns the status and the answer."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    async with answered(mesh, f"{path}?{query}", connect_from=connect_from, headers=headers) as answer:
        return answer.status, await answer.json()


def at(lat: str = LAT, lon: str = LON, **more: str) -> dict[str, str]:
    """Parameters of a valid position with the current time."""
    return {"id": "phone", "lat": lat, "lon": lon, "timestamp": str(now_ms()), "accuracy": "5"} | more


def app_request(uuid: str, **changes: Any) -> dict[str, Any]:
    """A request of Traccar Client; `changes` replace fields of the location."""
    location = {
        "event": "motionchange",
        "uuid": uuid,
        "timestamp": times.to_rfc3339(now_ms()),
        "coords": {"latitude": float(LAT), "longitude": float(LON), "accuracy": 3.8, "speed": -1, "heading": -1},
        "extras": {},
    }
    return {"location": location | changes, "device_id": "phone"}


async def position_rows(client: Client) -> list[tuple[str, int, int, int]]:
    batches = [entry.positions for _, entry in await client.entries()]
    return [
        row
        for batch in batches
        for row in zip(batch.device_id, batch.lat_e7, batch.lon_e7, batch.accuracy_mm, strict=True)
    ]


ALL_ACCEPTED = {"accepted": 1, "refused": [], "commands": []}
ROW = ("phone", 371_234_567, 1_277_654_321)


@pytest.mark.parametrize(
    ("path", "headers", "more"),
    [
        ("/", BEARER, {}),
        ("/osmand", BEARER, {}),
        (f"/{TOKEN}", None, {}),
        (f"/{TOKEN}/", None, {}),
        ("/", None, {"token": TOKEN}),
    ],
)
async def test_a_token_comes_in_the_header_the_path_or_the_query_and_what_is_answered_is_in_the_log(
    mesh: IngestMesh, client: Client, path: str, headers: dict[str, str] | None, more: dict[str, str]
) -> None:
    before = await position_rows(client)
    assert await ask(mesh, path, headers, **at(**more)) == (200, ALL_ACCEPTED)
    assert await position_rows(client) == [*before, (*ROW, 5_000)]


async def test_a_form_and_the_apps_json_are_accepted_and_a_repetition_counts_once(
    mesh: IngestMesh, client: Client
) -> None:
    form, app = at(), app_request("0e9a2473-a9a7-4c00-997b-fb97d2154e75")
    for _ in range(2):
        async with answered(mesh, method="POST", headers=BEARER, data=form) as answer:
            assert (answer.status, await answer.json()) == (200, ALL_ACCEPTED)
        async with answered(mesh, f"/{TOKEN}", "POST", json=app) as answer:
            assert (answer.status, await answer.json()) == (200, ALL_ACCEPTED)
    entries = [entry.positions for _, entry in await client.entries()]
    pairs = {pair for entry in entries for pair in zip(entry.report_id, entry.fix_time_ms, strict=True)}
    of_form = [report_id for report_id, ms in pairs if report_id.startswith("osmand-") and ms == int(form["timestamp"])]
    assert len(of_form) == 1 and "0e9a2473-a9a7-4c00-997b-fb97d2154e75" in dict(pairs)


async def test_a_position_and_a_panic_are_two_reports(mesh: IngestMesh, client: Client) -> None:
    given = at(alarm="sos")
    assert await ask(mesh, headers=BEARER, **given) == (200, ALL_ACCEPTED | {"accepted": 2})
    (panic,) = [
        entry.equipment
        for _, entry in await client.entries()
        if entry.equipment.event_time_ms == int(given["timestamp"])
    ]
    assert (panic.device_id, panic.event) == ("phone", log_pb2.PANIC_BUTTON)


async def test_a_panic_counts_in_spite_of_other_errors_in_its_request(mesh: IngestMesh, client: Client) -> None:
    before = sum(entry.equipment.event == log_pb2.PANIC_BUTTON for _, entry in await client.entries())
    status, answer = await ask(mesh, headers=BEARER, **at(lat="nan", alarm="sos"))
    assert (status, answer["accepted"], answer["refused"][0]["field"]) == (200, 1, "lat")
    status, answer = await ask(mesh, "/", BEARER, **at(timestamp="2100-01-01T00:00:00Z", alarm="sos"))
    assert (status, answer["accepted"], answer["refused"][0]["code"]) == (200, 1, "REFUSAL_CODE_CLOCK_AHEAD")
    after = sum(entry.equipment.event == log_pb2.PANIC_BUTTON for _, entry in await client.entries())
    assert after == before + 2


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "status", "field", "code"),
    [
        ({"lat": "nan"}, 400, "lat", "INVALID"),
        ({"lon": "inf"}, 400, "lon", "INVALID"),
        ({"lat": "91"}, 400, "lat", "INVALID"),
        ({"accuracy": "-1"}, 400, "accuracy", "INVALID"),
        ({"timestamp": "4102444800"}, 400, "fix_time", "CLOCK_AHEAD"),
        ({"timestamp": "soon"}, 400, "timestamp", "INVALID"),
        ({"lat": ""}, 400, "lat", "INVALID"),
        ({"x": "%FF"}, 400, "", "INVALID"),
        ({"alarm": "overspeed", "valid": "false"}, 400, "valid", "INVALID"),
        ({"id": ""}, 400, "id", "INVALID"),
        ({"id": "other"}, 403, "id", "NOT_YOURS"),
        ({"deviceid": "other"}, 400, "id", "INVALID"),
    ],
)
async def test_bad_input_is_refused_by_its_parameter_and_nothing_of_it_is_stored(
    mesh: IngestMesh, client: Client, given: dict[str, str], status: int, field: str, code: str
) -> None:
    before = await position_rows(client)
    actual_status, answer = await ask(mesh, headers=BEARER, **at(**given))
    refusal = answer["refused"][0]
    assert (actual_status, answer["accepted"]) == (status, 0)
    assert (refusal["field"], refusal["code"]) == (field, f"REFUSAL_CODE_{code}") and refusal["reason"]
    assert await position_rows(client) == before


async def test_a_time_of_1970_is_old_and_accepted(mesh: IngestMesh, client: Client) -> None:
    assert await ask(mesh, headers=BEARER, **at(timestamp="0")) == (200, ALL_ACCEPTED)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, ""),
        (b"{", 400, ""),
        (b"[]", 400, ""),
        (b"\xff", 400, ""),
        (b"[" * 60_000, 400, ""),
        (json.dumps(app_request("nan", coords={"latitude": float("nan")})).encode(), 400, ""),
        (json.dumps(app_request("u") | {"device_id": "other"}).encode(), 403, "device_id"),
        # On another status the app would repeat it forever, and send nothing behind it.
        (
            json.dumps(app_request("u", coords={"latitude": 91, "longitude": 1})).encode(),
            200,
            "location.coords.latitude",
        ),
        (json.dumps(app_request("u", timestamp="2100-01-01T00:00:00Z")).encode(), 200, "fix_time"),
        (json.dumps({"device_id": "phone", "location": {"event": "heartbeat"}}).encode(), 200, "location.coords"),
    ],
)
async def test_invalid_json_is_400_and_an_unacceptable_location_blocks_no_other(
    mesh: IngestMesh, client: Client, body: bytes, status: int, field: str
) -> None:
    headers = BEARER | {"Content-Type": "application/json"}
    async with answered(mesh, method="POST", headers=headers, data=body) as answer:
        content = await answer.json()
        assert (answer.status, content["accepted"], content["refused"][0]["field"]) == (status, 0, field)


@pytest.mark.parametrize("bad", ["", "no-such-token", OLD_TOKEN, REVOKED_TOKEN, TOKEN + "%FF", "%00"])
async def test_without_a_valid_token_nothing_is_accepted(mesh: IngestMesh, client: Client, bad: str) -> None:
    for path, given in ((f"/{bad}", at(id="gone")), ("/", at(id="gone", token=bad))):
        status, answer = await ask(mesh, path, None, **given)
        assert (status, answer["accepted"]) == (401, 0) or (bad.endswith("%FF") and status == 400)


async def test_wrong_methods_unknown_paths_and_bodies_beyond_64_kib_are_refused(
    mesh: IngestMesh, client: Client
) -> None:
    async with answered(mesh, method="PUT", headers=BEARER) as answer:
        assert answer.status == 405
    async with answered(mesh, "/a/b", headers=BEARER) as answer:
        assert answer.status == 404
    async with answered(mesh, method="POST", headers=BEARER, data=b"x" * (65 << 10)) as answer:
        assert answer.status == 413


async def test_refusals_are_counted_for_the_operator(mesh: IngestMesh, client: Client) -> None:
    await ask(mesh, **at(token="nobodys-token"))
    await ask(mesh, headers=BEARER, **at(id="somebody-else"))
    await ask(mesh, headers=BEARER, **at(lat="91"))
    async with server.channel(mesh.address) as channel:
        stub = ingest_pb2_grpc.IngestServiceStub(channel)
        answer = await stub.ListQuarantine(
            ingest_pb2.ListQuarantineRequest(), metadata=server.bearer("spiffe://tandem/operator/a", SECRET)
        )
    counted = {(entry.device_id, entry.code) for entry in answer.quarantined}
    codes = ingest_pb2.RefusalCode
    assert {
        ("", codes.REFUSAL_CODE_NOT_YOURS),
        ("somebody-else", codes.REFUSAL_CODE_NOT_YOURS),
        ("phone", codes.REFUSAL_CODE_INVALID),
    } <= counted


# ── under pressure ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_peer_is_cut_off_and_a_neighbour_is_served_meanwhile(mesh: IngestMesh, client: Client) -> None:
    port = int(mesh.http_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /?token={TOKEN} HTTP/1.1\r\nX: ".encode())
    ended = asyncio.create_task(reader.read())
    async with asyncio.timeout(WITHIN_S):
        while not ended.done():
            assert await ask(mesh, headers=BEARER, **at()) == (200, ALL_ACCEPTED)
            writer.write(b"x")
            await asyncio.sleep(0.2)
    assert isinstance(ended.exception(), ConnectionResetError) or ended.result() == b""
    writer.close()


@pytest.mark.parametrize("address", [HERE, ELSEWHERE], ids=["behind the crowd's address", "elsewhere"])
async def test_a_crowd_of_silent_sockets_keeps_no_report_and_no_panic_out(
    mesh: IngestMesh, client: Client, address: str
) -> None:
    given = at(alarm="sos")
    with crowd(int(mesh.http_url.rpartition(":")[2])):
        for _ in range(10):
            assert await ask(mesh, headers=BEARER, connect_from=address, **at()) == (200, ALL_ACCEPTED)
        assert await ask(mesh, headers=BEARER, connect_from=address, **given) == (200, ALL_ACCEPTED | {"accepted": 2})
        async with aiohttp.ClientSession() as field, field.post(mesh.field_url, data=given, headers=BEARER) as answer:
            assert (answer.status, await answer.json()) == (200, ALL_ACCEPTED | {"accepted": 2})
    panics = [
        entry.equipment
        for _, entry in await client.entries()
        if entry.equipment.event_time_ms == int(given["timestamp"])
    ]
    assert [panic.event for panic in panics] == [log_pb2.PANIC_BUTTON], "the same panic counts once, at either port"


async def test_the_port_for_field_serves_its_reports_and_nothing_else(mesh: IngestMesh, client: Client) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.post(mesh.field_url, data=at(), headers=BEARER) as answer:
            assert (answer.status, await answer.json()) == (200, ALL_ACCEPTED)
        async with session.post(mesh.field_url, data=at()) as answer:
            assert answer.status == 401
        async with session.get(f"{mesh.field_url}/{TOKEN}") as answer:
            assert answer.status == 404


async def test_a_full_log_is_503_with_a_delay_and_the_same_request_is_accepted_once_there_is_space(
    mesh: IngestMesh, client: Client
) -> None:
    info = await client.bus.js.stream_info("LOG_0")
    full_size, info.config.max_bytes = info.config.max_bytes, info.state.bytes + (64 << 10)
    await client.bus.js.update_stream(info.config)
    with pytest.raises(grpc.aio.AioRpcError):
        for n in range(100):
            await client.send(*load("tag", f"filling-{n}", batches=2))
    given = at(alarm="sos")
    query = "&".join(f"{name}={value}" for name, value in given.items())
    try:
        for _ in range(1_000):  # a small request may still fit in
            async with answered(mesh, f"/?{query}", headers=BEARER) as answer:
                if answer.status == 503:
                    assert int(answer.headers["Retry-After"]) >= 1
                    break
        else:
            pytest.fail("the log isn't full")
    finally:
        info.config.max_bytes = full_size
        await client.bus.js.update_stream(info.config)
    assert await ask(mesh, headers=BEARER, **given) == (200, ALL_ACCEPTED | {"accepted": 2})


async def test_a_rate_limited_phone_gets_429_with_retry_after(tmp_path: Path) -> None:
    with running_server(tmp_path / "nats") as nats:
        await create_streams(nats.url, 1)
        mesh = IngestMesh(nats)
        few = {"TANDEM_DEVICE_REPORTS_PER_S": "0.001", "TANDEM_DEVICE_REPORTS_BURST": "1"}
        with spawn("services.ingest", mesh.env | few, tmp_path / "ingest.log") as mesh.service:
            async with mesh.connected() as client:
                await register(mesh, client)
                assert await ask(mesh, headers=BEARER, **at()) == (200, ALL_ACCEPTED)
                query = "&".join(f"{name}={value}" for name, value in at(alarm="sos").items())
                async with answered(mesh, f"/?{query}", headers=BEARER) as answer:
                    content = await answer.json()
                    assert (answer.status, int(answer.headers["Retry-After"]), content["accepted"]) == (429, 5, 1)
                    assert content["refused"][0]["code"] == "REFUSAL_CODE_TOO_OFTEN"


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_waiting_command_comes_with_the_answer(mesh: IngestMesh, client: Client) -> None:
    desk = server.bearer("spiffe://npa/desk/seoul", SECRET)
    async with server.channel(mesh.address) as channel:
        stub = ingest_pb2_grpc.CommandServiceStub(channel)
        instruction = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=15))
        sent = await stub.SendCommand(
            ingest_pb2.SendCommandRequest(
                command_id="c-1", device_id="phone", instruction=instruction, valid_for_s=600
            ),
            metadata=desk,
        )
        _, answer = await ask(mesh, headers=BEARER, **at())
        (command,) = answer["commands"]
        assert 86_300 < command["instruction"]["report_every"].pop("for_s") <= 86_400
        assert command == {
            "command_id": "c-1",
            "device_id": "phone",
            "instruction": {"report_every": {"interval_s": 15}},
            "expires_at": sent.expires_at.ToJsonString(),
        }
        state = command_pb2.COMMAND_STATE_WAITING
        async with asyncio.timeout(WITHIN_S):
            while state != command_pb2.COMMAND_STATE_SENT:
                listed = await stub.ListCommands(ingest_pb2.ListCommandsRequest(device_id="phone"), metadata=desk)
                (status,) = listed.commands
                state = status.state


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_metrics_count_phones_without_naming_any(mesh: IngestMesh, client: Client) -> None:
    assert await ask(mesh, headers=BEARER, **at()) == (200, ALL_ACCEPTED)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{mesh.metrics_url}/metrics") as answer:
            text = await answer.text()
        async with session.get(f"{mesh.metrics_url}/readyz") as answer:
            assert answer.status == 200
    assert 'tandem_ingest_http_answers_total{status="200"}' in text
    assert '"phone"' not in text and TOKEN not in text


async def test_phones_connect_by_tls_without_a_client_certificate(tmp_path: Path) -> None:
    authority = Authority("phones")
    cert, key = authority.server().write(tmp_path, "endpoint")
    with running_server(tmp_path / "nats") as nats:
        await create_streams(nats.url, 1)
        mesh = IngestMesh(nats)
        env = mesh.env | {"TANDEM_HTTP_TLS_CERT": str(cert), "TANDEM_HTTP_TLS_KEY": str(key)}
        mesh.http_url = mesh.http_url.replace("http:", "https:")
        with spawn("services.ingest", env, tmp_path / "ingest.log") as mesh.service:
            async with mesh.connected():
                context = ssl.create_default_context(cadata=authority.cert.decode())
                async with answered(mesh, "/no-such-token", ssl=context) as answer:
                    assert answer.status == 401
