"""The HTTP server on real sockets: slow peers are cut off without an effect on others, and logs never quote requests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.common.observability.metrics import unexposed
from services.common.web import server as serving
from tests.support.common.certificates import Authority

WITHIN_S = 20.0
REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
SECRET = "token-of-this-test"
METRICS = unexposed()


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await serving.body_of(request))


async def slow_answer(request: web.Request) -> web.Response:
    await serving.body_of(request)
    await asyncio.sleep(serving.REQUEST_WITHIN_S * 3)
    return web.Response(text="done")


async def broken(request: web.Request) -> web.Response:
    raise RuntimeError(request.path)


async def large(request: web.Request) -> web.Response:
    return web.Response(body=bytes(64 << 20))


ROUTES = [web.post("/", echo), web.get("/tired", slow_answer), web.get("/large", large), web.get("/{token}", broken)]


class Peer:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Sends a request and returns the status and body of its answer."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(WITHIN_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            return int(head.split(b" ")[1]), await self.reader.readexactly(int(length.split(b":")[1]))

    async def is_cut_off(self) -> bool:
        """Waits until the server closes the connection, and ignores the data that still comes. Fails after WITHIN_S."""
        async with asyncio.timeout(WITHIN_S):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass
            return True


@asynccontextmanager
async def endpoint(most: int = 100) -> AsyncIterator[int]:
    async with serving.served("test", ROUTES, "127.0.0.1", port=0, closed=METRICS.http_closed, most=most) as port:
        yield port


@asynccontextmanager
async def peer(port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_WITHIN_S", 0.2)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"P",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        REQUEST[:-1],
        b"POST /no HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    ],
)
@pytest.mark.usefixtures("hurry")
async def test_half_a_request_is_cut_off_while_another_peer_is_served(sent: bytes) -> None:
    async with endpoint() as port, peer(port) as slow, peer(port) as neighbour:
        slow.writer.write(sent)
        cut = asyncio.create_task(slow.is_cut_off())
        requests = 0
        while not cut.done():
            assert await neighbour.ask(REQUEST) == (200, b"hi")
            requests += 1
            await asyncio.sleep(0.02)
        assert cut.result() and requests


@pytest.mark.usefixtures("hurry")
async def test_a_request_sent_byte_by_byte_is_cut_off() -> None:
    async with endpoint() as port, peer(port) as slow:
        cut = asyncio.create_task(slow.is_cut_off())
        slow.writer.write(b"GET / HTTP/1.1\r\nX: ")
        while not cut.done():
            slow.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert cut.result()


@pytest.mark.parametrize("first", [REQUEST, b"GET /tired HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["behind", "while"])
@pytest.mark.usefixtures("hurry")
async def test_half_of_a_second_request_is_cut_off_too(first: bytes) -> None:
    async with endpoint() as port, peer(port) as slow:
        slow.writer.write(first)
        if first is REQUEST:
            await slow.answer()
        else:
            await asyncio.sleep(serving.REQUEST_WITHIN_S / 2)
        slow.writer.write(b"P")
        assert await slow.is_cut_off()


def cut_off() -> float:
    """Number of slow peers that were cut off so far."""
    labels = {"endpoint": "test", "reason": "slow"}
    return METRICS.registry.get_sample_value("tandem_http_closed_total", labels) or 0


@pytest.mark.usefixtures("hurry")
async def test_a_peer_that_does_not_read_its_answer_is_cut_off() -> None:
    async with endpoint() as port, peer(port) as deaf:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = cut_off()
        deaf.writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(1_000):
            if cut_off() > before:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the peer still holds its connection")


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[serving.ConnectionGuard]:
    """The guards of all connections, in the order of the connections."""
    made: list[serving.ConnectionGuard] = []

    class Noted(serving.ConnectionGuard):
        def __init__(self, endpoint: serving.HttpEndpoint) -> None:
            super().__init__(endpoint)
            made.append(self)

    monkeypatch.setattr(serving, "ConnectionGuard", Noted)
    return made


async def test_a_peer_that_reads_a_large_answer_slowly_is_cut_off_only_once_it_stops(
    guards: list[serving.ConnectionGuard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUEST_WITHIN_S", 3_600.0)  # this test lets the deadline pass
    async with endpoint() as port, peer(port) as slow:
        slow.writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await slow.reader.readexactly(1 << 16)
        (guard,) = guards
        for _ in range(3):
            await slow.reader.readexactly(8 << 20)
            async with asyncio.timeout(WITHIN_S):
                while guard._count_unread() + serving.MIN_READ_BYTES > (guard._unread_bytes or 0):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            guard._expire()
            assert guard._deadline is not None and not guard._transport.is_closing()
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(WITHIN_S):
            unread = -1
            while unread != (unread := guard._count_unread()):  # noqa: ASYNC110  # until the buffers on the way are full
                await asyncio.sleep(0.2)
        guard._unread_bytes = unread
        guard._expire()
        assert guard._transport.is_closing()


async def test_a_peer_that_has_read_a_large_answer_keeps_its_connection(guards: list[serving.ConnectionGuard]) -> None:
    async with endpoint() as port, peer(port) as page:
        status, body = await page.ask(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, len(body)) == (200, 64 << 20)
        async with asyncio.timeout(WITHIN_S):
            while guards[0]._deadline is not None:  # noqa: ASYNC110  # nothing else shows it
                await asyncio.sleep(0.02)
        assert await page.ask(REQUEST) == (200, b"hi")


@pytest.mark.usefixtures("hurry")
async def test_a_peer_that_waits_or_is_idle_between_requests_is_not_cut_off() -> None:
    async with endpoint() as port, peer(port) as phone:
        assert await phone.ask(b"GET /tired HTTP/1.1\r\nHost: a\r\n\r\n" + REQUEST) == (200, b"done")
        assert await phone.answer() == (200, b"hi")
        await asyncio.sleep(serving.REQUEST_WITHIN_S * 3)
        assert await phone.ask(REQUEST) == (200, b"hi")


async def test_a_connection_above_the_maximum_evicts_the_longest_idle_one() -> None:
    async with endpoint(most=2) as port, peer(port) as first, peer(port) as second:
        assert [await client.ask(REQUEST) for client in (first, second, first)] == [(200, b"hi")] * 3
        async with peer(port) as third:
            assert await third.ask(REQUEST) == (200, b"hi")
            assert await second.is_cut_off()
            assert [await client.ask(REQUEST) for client in (first, third)] == [(200, b"hi")] * 2


@asynccontextmanager
async def busy(port: int) -> AsyncIterator[Peer]:
    """A connection on which the server has read half a request."""
    async with peer(port) as client:
        client.writer.write(REQUEST[:-6] + b"\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(WITHIN_S):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        yield client


async def test_a_new_connection_is_closed_if_none_is_idle() -> None:
    async with endpoint(most=1) as port, busy(port) as first:
        async with peer(port) as second:
            assert await second.is_cut_off()
        assert await first.ask(b"hi") == (200, b"hi")


@pytest.mark.usefixtures("hurry")
async def test_a_peer_that_left_before_its_answer_occupies_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint(most=1) as port:
        async with peer(port) as gone:
            gone.writer.write(b"GET /tired HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(serving.REQUEST_WITHIN_S)
        await asyncio.sleep(serving.REQUEST_WITHIN_S * 5)
        monkeypatch.setattr(serving, "REQUEST_WITHIN_S", WITHIN_S)
        async with busy(port), peer(port) as second:
            assert await second.is_cut_off()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (b"GET /no/such HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n", 500),
    ],
)
async def test_a_failed_request_ends_the_connection(asked: bytes, status: int) -> None:
    async with endpoint() as port, peer(port) as stranger:
        assert (await stranger.ask(asked))[0] == status
        assert await stranger.is_cut_off()


async def test_a_body_above_the_maximum_gets_413() -> None:
    async with endpoint() as port, peer(port) as phone:
        body = bytes(serving.MAX_BODY_BYTES + 1)
        status, _ = await phone.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert status == 413


@pytest.mark.parametrize(
    ("request_line", "status", "logged"),
    [
        (f"GET /?token={SECRET}\x01 HTTP/1.1", 400, False),
        (f"{SECRET}", 400, False),
        (f"GET /{SECRET} HTTP/1.1", 500, True),
        (f"GET /a/b?{SECRET} HTTP/1.1", 404, False),
    ],
)
async def test_no_log_line_quotes_a_request(
    capfd: pytest.CaptureFixture[str], request_line: str, status: int, logged: bool
) -> None:
    async with endpoint() as port, peer(port) as phone:
        answer, _ = await phone.ask(f"{request_line}\r\nHost: a\r\n\r\n".encode())
        assert answer == status
    out, err = capfd.readouterr()
    assert SECRET not in out + err and "Traceback" not in out + err
    assert ("http_failed" in out + err) == logged


async def test_a_replaced_certificate_is_used_without_a_restart_and_a_broken_one_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CERTIFICATE_INTERVAL_S", 0.05)
    first, second = Authority("first"), Authority("second")
    tls = first.server().write(tmp_path, "phones")

    async def served_to(authority: Authority) -> bool:
        try:
            async with peer(port, ssl.create_default_context(cadata=authority.cert.decode())) as phone:
                return await phone.ask(REQUEST) == (200, b"hi")
        except ssl.SSLError:
            return False

    async with serving.served("test", ROUTES, "127.0.0.1", port=0, closed=METRICS.http_closed, tls=tls) as port:
        assert await served_to(first) and not await served_to(second)
        tls[0].write_text("no certificate")
        await asyncio.sleep(0.2)
        assert await served_to(first)
        second.server().write(tmp_path, "phones")
        for _ in range(1_000):
            if await served_to(second):
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("the server still uses the old certificate")
        async with peer(port) as plain:
            plain.writer.write(REQUEST)
            assert await plain.is_cut_off()
