"""The HTTP server on real sockets: slow peers and crowds of strangers are cut off without an effect on others, and logs never quote
requests."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from services.common.observability.metrics import unexposed
from services.common.web import server as serving
from services.common.web import tls as port_tls
from services.common.web.tls import PortCaller
from tests.support.common.certificates import Authority

WITHIN_S = 20.0
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
"""Two addresses of peers."""
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


async def known(request: web.Request) -> web.Response:
    """A request whose proof of a sender is its path, before its body is there."""
    serving.proven(request, request.match_info["sender"])
    return await echo(request)


ROUTES = [
    web.post("/", echo),
    web.get("/tired", slow_answer),
    web.get("/large", large),
    web.post("/of/{sender}", known),
    web.get("/{token}", broken),
]


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
async def endpoint(most: int = 100, max_stranger_cost: int = 4_096) -> AsyncIterator[int]:
    async with serving.served(
        "test",
        ROUTES,
        "127.0.0.1",
        port=0,
        closed=METRICS.http_closed,
        most=most,
        max_stranger_cost=max_stranger_cost,
    ) as port:
        yield port


@asynccontextmanager
async def peer(port: int, context: ssl.SSLContext | None = None, *, at: str = HERE) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(at, 0))
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


# ── crowds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def of(sender: str, body: bytes = b"hi") -> bytes:
    """A request that proves a sender."""
    return b"POST /of/%s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (sender.encode(), len(body), body)


@asynccontextmanager
async def crowd(port: int, number: int, at: str = HERE, *, first: bytes = b"P") -> AsyncIterator[list[Peer]]:
    """Strangers who have sent one byte, in the order of their connections."""
    async with AsyncExitStack() as stack:
        strangers = []
        for _ in range(number):
            strangers.append(await stack.enter_async_context(peer(port, at=at)))
            strangers[-1].writer.write(first)
        yield strangers


@asynccontextmanager
async def busy(port: int, start: bytes = REQUEST) -> AsyncIterator[Peer]:
    """A connection on which the server has read half a request."""
    async with peer(port) as client:
        client.writer.write(start[:-6] + b"\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(WITHIN_S):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        yield client


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address may have three silent connections beside one that is served."""
    monkeypatch.setattr(serving, "MAX_SOURCE_COST", serving.SERVED_COST + 3)


@pytest.mark.usefixtures("few")
async def test_a_crowd_at_one_address_displaces_its_own_earliest_and_nobody_elsewhere() -> None:
    most = serving.MAX_SOURCE_COST
    async with (
        endpoint() as port,
        peer(port, at=ELSEWHERE) as neighbour,
        crowd(port, most) as strangers,
        crowd(port, 2),
    ):
        assert await strangers[0].is_cut_off() and await strangers[1].is_cut_off()
        assert await neighbour.ask(REQUEST) == (200, b"hi")
        assert await strangers[-1].ask(REQUEST[1:]) == (200, b"hi")


@pytest.mark.usefixtures("few")
async def test_a_phone_behind_the_address_of_a_crowd_is_served_and_then_counts_by_itself() -> None:
    most = serving.MAX_SOURCE_COST
    async with endpoint() as port, crowd(port, most), peer(port) as phone, crowd(port, most - 1):
        assert await phone.ask(of("phone")) == (200, b"hi")
        async with crowd(port, most + 1) as later:
            assert await later[0].is_cut_off()
            assert await phone.ask(of("phone")) == (200, b"hi")


async def test_a_crowd_from_many_addresses_displaces_its_earliest() -> None:
    most, each = 2 * serving.SERVED_COST, serving.SERVED_COST
    async with (
        endpoint(max_stranger_cost=most) as port,
        peer(port, at="127.0.0.4") as phone,
        crowd(port, each),
        crowd(port, each, ELSEWHERE),
    ):
        assert await phone.is_cut_off(), f"the earliest of {most + 1}"
        async with peer(port, at="127.0.0.4") as later:
            assert await later.ask(REQUEST) == (200, b"hi")


@pytest.mark.usefixtures("few")
async def test_a_stranger_whose_request_is_whole_is_answered_and_with_half_a_body_is_displaced() -> None:
    async with endpoint() as port, busy(port) as half, crowd(port, 4):
        assert await half.is_cut_off()
    async with endpoint() as port, peer(port) as whole:
        whole.writer.write(b"GET /tired HTTP/1.1\r\nHost: a\r\n\r\n")
        async with crowd(port, 3) as strangers, crowd(port, 1):
            assert await strangers[0].is_cut_off()
        assert not whole.reader.at_eof()


async def test_one_sender_loses_its_own_connection_that_has_been_idle_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_SENDER_CONNECTIONS", 2)
    async with endpoint() as port, peer(port) as other, peer(port) as first, peer(port) as second:
        assert await other.ask(of("other")) == (200, b"hi")
        assert [await each.ask(of("phone")) for each in (first, second, first)] == [(200, b"hi")] * 3
        async with peer(port) as third:
            assert await third.ask(of("phone")) == (200, b"hi")
            assert await second.is_cut_off()
            for name, each in {"phone": first, "other": other}.items():
                assert await each.ask(of(name)) == (200, b"hi")


async def test_beyond_the_maximum_the_senders_connection_that_has_been_idle_longest_is_closed() -> None:
    async with endpoint(most=2) as port, peer(port) as first, peer(port) as second:
        for name, each in {"a": first, "b": second}.items():
            assert await each.ask(of(name)) == (200, b"hi")
        assert await first.ask(of("a")) == (200, b"hi")
        async with peer(port) as third:
            assert await third.ask(of("c")) == (200, b"hi")
            assert await second.is_cut_off()
            assert await first.ask(of("a")) == (200, b"hi")


async def test_a_sender_beyond_the_maximum_is_answered_even_if_no_connection_is_idle() -> None:
    async with endpoint(most=1) as port, busy(port, of("a")) as first:
        async with peer(port) as second:
            assert await second.ask(of("b")) == (200, b"hi")
            assert await second.is_cut_off()
        assert await first.ask(b"hi") == (200, b"hi")


@pytest.mark.usefixtures("hurry")
async def test_a_peer_that_left_before_its_answer_occupies_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_SOURCE_COST", serving.SERVED_COST)
    async with endpoint() as port:
        async with peer(port) as gone:
            gone.writer.write(b"GET /tired HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(serving.REQUEST_WITHIN_S)
        await asyncio.sleep(serving.REQUEST_WITHIN_S * 5)
        async with peer(port) as second:
            assert await second.ask(REQUEST) == (200, b"hi")


async def test_a_stranger_who_leaves_while_his_refused_request_is_read_writes_no_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with endpoint() as port:
        async with peer(port) as stranger:
            stranger.writer.write(b"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            assert (await stranger.answer())[0] == 405
        async with peer(port) as phone:
            assert await phone.ask(REQUEST) == (200, b"hi")
    out, err = capfd.readouterr()
    assert "http_failed" not in out + err


def test_a_process_that_may_open_few_files_has_smaller_bounds() -> None:
    """Beyond its files a process accepts nobody, and can't reach its log either."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 3_000))\n"
        "from services.common.web import server\n"
        "print(server._allowed_share('test', 4_000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0.5 3000" and "connections_limited" in done.stdout


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


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def on_each_loop(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path, Any], None]:
    """Runs a test on the event loop of services and on that of Python."""

    @pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
    def run(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test(tmp_path))

    return run


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.cert.decode())


@on_each_loop
async def test_a_greeting_in_pieces_is_secured_and_what_is_none_is_cut_off(folder: Path) -> None:
    authority = Authority("phones")
    tls = authority.server().write(folder, "phones")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    async with serving.served("test", ROUTES, "127.0.0.1", port=0, closed=METRICS.http_closed, tls=tls) as port:
        async with peer(port) as phone:
            for byte in outgoing.read():
                phone.writer.write(bytes((byte,)))
                await phone.writer.drain()
            async with asyncio.timeout(WITHIN_S):
                while True:
                    incoming.write(await phone.reader.read(1 << 16))
                    with suppress(ssl.SSLWantReadError):
                        client.do_handshake()
                        break
            client.write(REQUEST)
            phone.writer.write(outgoing.read())
            answer = b""
            async with asyncio.timeout(WITHIN_S):
                while not answer.endswith(b"hi"):
                    incoming.write(await phone.reader.read(1 << 16))
                    with suppress(ssl.SSLWantReadError):
                        answer += client.read()
            assert answer.startswith(b"HTTP/1.1 200")
        for wrong in (REQUEST, b"\x16\x03\x01\x00\x02hi", b"\x16\x03\x01\xff\xff" + bytes(port_tls.MAX_GREETING_BYTES)):
            async with peer(port) as stranger:
                stranger.writer.write(wrong)
                assert await stranger.is_cut_off()


@on_each_loop
async def test_a_crowd_without_a_handshake_displaces_its_own_earliest(folder: Path) -> None:
    authority = Authority("phones")
    tls = authority.server().write(folder, "phones")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "MAX_SOURCE_COST", serving.SERVED_COST + 3)
        async with (
            serving.served("test", ROUTES, "127.0.0.1", port=0, closed=METRICS.http_closed, tls=tls) as port,
            crowd(port, 4, first=b"\x16") as strangers,
            peer(port, trusting(authority)) as phone,
            crowd(port, 3, first=b"\x16"),
        ):
            assert await phone.ask(of("phone")) == (200, b"hi")
            assert await strangers[0].is_cut_off()


@on_each_loop
async def test_a_port_for_one_caller_serves_the_holder_of_its_certificate_alone(folder: Path) -> None:
    authority, other = Authority("mesh"), Authority("other")
    files = authority.server().write(folder, "ingest")
    (folder / "ca.crt").write_bytes(authority.cert)
    caller = PortCaller("spiffe://tandem/service/field", folder / "ca.crt")

    async def answered_to(issuer: Authority | None, spiffe_id: str) -> bool:
        context = trusting(authority)
        if issuer:
            context.load_cert_chain(*issuer.client(spiffe_id).write(folder, "caller"))
        try:
            async with peer(port, context) as client:
                return await client.ask(REQUEST) == (200, b"hi")
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            return False

    async with serving.served(
        "test", ROUTES, "127.0.0.1", port=0, closed=METRICS.http_closed, tls=files, caller=caller
    ) as port:
        assert await answered_to(authority, caller.spiffe_id)
        assert not await answered_to(authority, "spiffe://tandem/service/registry")
        assert not await answered_to(other, caller.spiffe_id)
        assert not await answered_to(None, "")


async def test_a_replaced_certificate_is_used_without_a_restart_and_a_broken_one_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_tls, "CERTIFICATE_INTERVAL_S", 0.05)
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
