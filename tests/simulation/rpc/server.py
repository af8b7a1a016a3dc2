"""The gRPC server of a simulated process, in the place of grpc.aio's. Calls pass the same interceptors, and messages the same bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import grpc.aio

from tests.simulation.kernel.network import End
from tests.simulation.kernel.process import Process, current

GRACE_S = 0.5


class CallDetails(NamedTuple):
    """What an interceptor sees of a call."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class AbortedCall(Exception):
    """The servicer has ended the call with a status."""


class ServerCall:
    """A call at the server: the context that servicers get."""

    def __init__(self, server: SimulatedServer, end: End, *, details: CallDetails, peer: str) -> None:
        self._server = server
        self._end = end
        self._details = details
        self._peer = peer
        self._requests: deque[bytes | None] = deque()
        self._arrived = asyncio.Event()
        self._code, self._text = grpc.StatusCode.OK, ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()
        self._greeted = False
        self._handler: Any = None
        self.task: asyncio.Task[None] | None = None

    # ── what servicers call ─────────────────────────────────────────────────────────────────────────────────────────

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of the call."""
        return self._details.invocation_metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """Empty: simulated callers identify themselves by tokens, as on loopback."""
        return {}

    def peer(self) -> str:
        """Name of the calling process."""
        return self._peer

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Sets the metadata that go with the status."""
        self._trailing = tuple(metadata)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """Ends the call with a status."""
        self._code, self._text = code, details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise AbortedCall

    async def send_initial_metadata(self, _: object) -> None:
        """Tells the caller that the server has the call."""
        self._greet()

    async def read(self) -> Any:
        """The next request of a stream, or EOF."""
        while not self._requests:
            self._arrived.clear()
            await self._arrived.wait()
        if self._requests[0] is None:
            return grpc.aio.EOF
        raw = self._requests.popleft()
        assert raw is not None
        return self._handler.request_deserializer(raw)

    async def write(self, message: Any) -> None:
        """Sends an answer."""
        if not self._end.is_open:
            raise asyncio.CancelledError
        self._greet()
        self._end.send(("message", self._handler.response_serializer(message)))
        await asyncio.sleep(0)

    # ── what the server does ────────────────────────────────────────────────────────────────────────────────────────

    def _greet(self) -> None:
        if not self._greeted:
            self._greeted = True
            self._end.send(("begun",))

    def receive(self, frame: tuple[Any, ...]) -> None:
        """Notes a frame of the caller."""
        if frame[0] == "cancel":
            self.cancel()
        else:
            self._requests.append(frame[1] if frame[0] == "message" else None)
            self._arrived.set()

    def cancel(self) -> None:
        """Ends the call without a status, because the caller has gone."""
        if self.task:
            self.task.cancel()

    async def _single_request(self) -> Any:
        while not self._requests:
            self._arrived.clear()
            await self._arrived.wait()
        raw = self._requests.popleft()
        return self._handler.request_deserializer(raw)

    async def _request_stream(self) -> Any:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    async def run(self) -> None:
        """Serves the call to its end and sends the status."""
        try:
            handler = self._handler = await self._server.handler_of(self._details)
            if handler is None:
                self._code = grpc.StatusCode.UNIMPLEMENTED
            else:
                await self._serve(handler)
        except AbortedCall:
            pass
        except asyncio.CancelledError:
            self._code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            self._code, self._text = grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"
            asyncio.get_running_loop().call_exception_handler({"message": "a servicer failed", "exception": error})
        finally:
            self._end.send(("status", self._code, self._text, self._trailing))
            self._end.close()
            self._server.calls.pop(self, None)

    async def _serve(self, handler: Any) -> None:
        request = self._request_stream() if handler.request_streaming else await self._single_request()
        if handler.response_streaming:
            answers = (handler.stream_stream if handler.request_streaming else handler.unary_stream)(request, self)
            if not hasattr(answers, "__aiter__"):
                await answers
                return
            try:
                async for answer in answers:
                    await self.write(answer)
            finally:
                await answers.aclose()
        else:
            serve = handler.stream_unary if handler.request_streaming else handler.unary_unary
            await self.write(await serve(request, self))


class SimulatedServer:
    """A gRPC server with the methods of grpc.aio's that the services use."""

    def __init__(self, *, interceptors: Sequence[Any] = (), **_: Any) -> None:
        self.calls: dict[ServerCall, None] = {}
        self._process: Process = current()
        self._interceptors, self._handlers = tuple(interceptors), list[Any]()
        self._addresses: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Adds the methods of a servicer."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, *_: object) -> None:
        """The generic handlers have the same methods."""

    def add_insecure_port(self, address: str) -> int:
        """Adds an address and returns its port."""
        self._addresses.append(address)
        return int(address.rpartition(":")[2])

    async def start(self) -> None:
        """Accepts calls."""
        for address in self._addresses:
            self._process.network.listen(address, self._process.name, self._accept)

    async def stop(self, _grace: float | None) -> None:
        """Refuses new calls, and cancels those in progress after a short time."""
        self._process.network.close_listeners(self._process.name)
        await asyncio.sleep(GRACE_S)
        for call in list(self.calls):
            call.cancel()

    def _accept(self, end: End, peer: str) -> None:
        call: ServerCall | None = None

        def receive(frame: tuple[Any, ...]) -> None:
            nonlocal call
            if call is None:
                call = ServerCall(self, end, details=CallDetails(frame[1], frame[2]), peer=peer)
                self.calls[call] = None
                call.task = asyncio.get_running_loop().create_task(call.run())
            else:
                call.receive(frame)

        def closed() -> None:
            if call is not None:
                call.cancel()

        loop = self._process.loop
        end.receive = partial(loop.enter, receive)
        end.closed = partial(loop.enter, closed)

    async def handler_of(self, details: CallDetails) -> Any:
        """The handler of a call, as the interceptors return it."""

        async def plain(call: CallDetails) -> Any:
            for handlers in self._handlers:
                if (found := handlers.service(call)) is not None:
                    return found
            return None

        continuation: Callable[[CallDetails], Awaitable[Any]] = plain
        for interceptor in reversed(self._interceptors):
            continuation = _through(interceptor, continuation)
        return await continuation(details)


def _through(
    interceptor: Any, continuation: Callable[[CallDetails], Awaitable[Any]]
) -> Callable[[CallDetails], Awaitable[Any]]:
    async def intercepted(details: CallDetails) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return intercepted
