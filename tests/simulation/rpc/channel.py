"""gRPC channels of simulated processes, in the place of grpc.aio's. Each call is a connection of its own over the simulated network."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio

from services.common.settings import addresses_of
from tests.simulation.kernel.network import End
from tests.simulation.kernel.process import Process, current

CONNECT_S = 0.001
"""Time to connect, or to find that nobody listens, seconds."""


class SimulatedCall:
    """A call in progress: what a stub returns."""

    def __init__(self, process: Process, addresses: Sequence[str], method: str, *, options: CallOptions) -> None:
        self._process = process
        self._addresses = addresses
        self._method = method
        self._options = options
        loop = asyncio.get_running_loop()
        self._answers: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._status: tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]] | None = None
        self._begun = asyncio.Event()
        self._end: End | None = None
        self._connected = asyncio.Event()
        self._timer = loop.call_later(options.timeout, self._time_out) if options.timeout else None
        self._tasks = [loop.create_task(self._connect())]
        if options.requests is not None:
            self._tasks.append(loop.create_task(self._write_all(options.requests)))

    async def _connect(self) -> None:
        await asyncio.sleep(CONNECT_S)
        offset = self._process.world.random.randrange(len(self._addresses))
        for i in range(len(self._addresses)):
            address = self._addresses[(offset + i) % len(self._addresses)]
            end = self._process.network.connect(self._process.name, address)
            if end is not None:
                break
        else:
            self._finish(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")
            return
        self._end, loop = end, self._process.loop
        end.receive = partial(loop.enter, self._receive)
        end.closed = partial(loop.enter, self._finish, grpc.StatusCode.UNAVAILABLE, "Socket closed")
        end.send(("call", self._method, self._options.metadata))
        self._connected.set()

    async def _write_all(self, requests: AsyncIterator[Any]) -> None:
        await self._connected.wait()
        async for request in requests:
            if self.done():
                return
            await self.write(request)
        await self.done_writing()

    async def write(self, request: Any) -> None:
        """Sends a request of a stream. Raises InvalidStateError after the call's end."""
        await self._connected.wait()
        if self.done() or self._end is None:
            raise asyncio.InvalidStateError("the call is over")
        self._end.send(("message", self._options.serialize(request)))
        await asyncio.sleep(0)

    async def done_writing(self) -> None:
        """Says that no more requests follow."""
        await self._connected.wait()
        if self._end and not self.done():
            self._end.send(("end",))

    def _receive(self, frame: tuple[Any, ...]) -> None:
        self._begun.set()
        if frame[0] == "message":
            self._answers.append(frame[1])
            self._changed.set()
        elif frame[0] == "status":
            self._finish(frame[1], frame[2], frame[3])

    def _time_out(self) -> None:
        if not self.done():
            self._give_up()
            self._finish(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _finish(self, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        if self._status is None:
            self._status = (code, text, trailing)
            if self._timer:
                self._timer.cancel()
            for event in (self._changed, self._begun, self._connected):
                event.set()

    def _give_up(self) -> None:
        if self._end:
            self._end.send(("cancel",))
            self._end.close()

    # ── what callers use ────────────────────────────────────────────────────────────────────────────────────────────

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._status is not None

    async def code(self) -> grpc.StatusCode:
        """Waits for the end, and returns the code."""
        while self._status is None:
            self._changed.clear()
            await self._changed.wait()
        return self._status[0]

    async def initial_metadata(self) -> tuple[()]:
        """Waits until the server has the call or the call has ended."""
        await self._begun.wait()
        return ()

    def cancel(self) -> bool:
        """Cancels the call."""
        for task in self._tasks:
            task.cancel()
        if self.done():
            return False
        self._give_up()
        self._finish(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    async def read(self) -> Any:
        """The next answer of a stream, or EOF. Raises AioRpcError if the call failed."""
        while not self._answers:
            if self._status is not None:
                if self._status[0] is grpc.StatusCode.OK:
                    return grpc.aio.EOF
                raise self._error()
            self._changed.clear()
            try:
                await self._changed.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._options.deserialize(self._answers.popleft())

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (answer := await self.read()) is not grpc.aio.EOF:
            yield answer

    def __await__(self) -> Generator[Any, None, Any]:
        return self._single().__await__()

    async def _single(self) -> Any:
        answer = await self.read()
        if answer is grpc.aio.EOF:
            raise self._error()
        return answer

    def _error(self) -> grpc.aio.AioRpcError:
        assert self._status is not None
        code, text, trailing = self._status
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=text)


class CallOptions:
    """Parts of a call besides its method."""

    def __init__(
        self,
        serialize: Callable[[Any], bytes],
        deserialize: Callable[[bytes], Any],
        *,
        metadata: tuple[tuple[str, str], ...],
        timeout: float | None,
        requests: AsyncIterator[Any] | None,
    ) -> None:
        self.serialize, self.deserialize = serialize, deserialize
        self.metadata = metadata
        self.timeout = timeout
        self.requests = requests


class SimulatedChannel:
    """A channel to any of several addresses."""

    def __init__(self, target: str) -> None:
        self._addresses = addresses_of(target)

    async def __aenter__(self) -> SimulatedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Calls end by themselves."""

    async def close(self, _grace: float | None = None) -> None:
        """Calls end by themselves."""

    def _method(
        self, method: str, serialize: Callable[[Any], bytes], deserialize: Callable[[bytes], Any], *, streams: bool
    ) -> Callable[..., SimulatedCall]:
        def call(
            request: Any = None, *, metadata: Sequence[tuple[str, str]] = (), timeout: float | None = None, **_: object
        ) -> SimulatedCall:
            requests = request
            if not streams:
                requests = _single(request)
            options = CallOptions(serialize, deserialize, metadata=tuple(metadata), timeout=timeout, requests=requests)
            return SimulatedCall(current(), self._addresses, method, options=options)

        return call

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: object) -> Any:
        """A method with a request and an answer."""
        return self._method(method, request_serializer, response_deserializer, streams=False)

    unary_stream = unary_unary

    def stream_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: object) -> Any:
        """A method with streams of requests."""
        return self._method(method, request_serializer, response_deserializer, streams=True)

    stream_unary = stream_stream


async def _single(request: Any) -> AsyncIterator[Any]:
    yield request


def insecure_channel(target: str, **_: object) -> SimulatedChannel:
    """In the place of grpc.aio.insecure_channel."""
    return SimulatedChannel(target)
