"""The interceptor of every gRPC server: authentication, roles, requests that can't be parsed, and streams that nobody reads.

A method can't end a stream by itself: it waits until its answer fits into the buffers.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from services.common import errors
from services.common.errors import TooMuchInProgress
from services.common.observability import telemetry
from services.common.observability.telemetry import logger
from services.common.rpc.history import HistoryBudget
from services.common.rpc.identity import Caller, caller_of, console_user, verify_dev_token
from services.common.rpc.statuses import abort
from tandem.common.v1 import access_pb2

OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
"""Prefixes of the methods that anyone may call: the named exceptions of the rule that each method needs a role."""
MAX_OPEN_STREAMS = 200
"""Maximum number of concurrent streams of OPEN_METHODS, for all callers together."""
PERSON = "tandem-person"
"""Metadata key with the name of the person for whom a console calls."""

_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def caller() -> Caller:
    """Authenticated caller of the rpc that the current task serves."""
    return _caller.get()


def allowed_roles(method: str) -> frozenset[int]:
    """Roles that may call a method such as /tandem.ingest.v1.IngestService/Report, according to the protos. Empty if they name none."""
    options = _options(method)
    return frozenset(options.Extensions[access_pb2.allowed_roles]) if options else frozenset()


def reads_history(method: str) -> bool:
    """Whether the protos say that the calls of a method are read within the history's budget."""
    options = _options(method)
    return bool(options and options.Extensions[access_pb2.reads_history])


def _options(method: str) -> MethodOptions | None:
    service_name, _, method_name = method.lstrip("/").partition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        options: MethodOptions = service.methods_by_name[method_name].GetOptions()
    except KeyError:
        return None
    return options


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Placeholder for a request that can't be parsed. The call is refused after its caller was authenticated."""

    error: errors.InvalidField


def _reader(handler: grpc.RpcMethodHandler[Any, Any], method: str) -> Callable[[bytes], Any]:
    """Deserializer for a method's requests that never raises, because gRPC would answer UNKNOWN."""
    read: Any = handler.request_deserializer
    service_name, _, method_name = method.lstrip("/").partition("/")

    def deserialize(raw: bytes) -> Any:
        try:
            return read(raw)
        except DecodeError:
            service = descriptor_pool.Default().FindServiceByName(service_name)
            return _Unreadable(unreadable(service.methods_by_name[method_name].input_type.full_name))

    return deserialize


def unreadable(message_name: str) -> errors.InvalidField:
    """Error of a request that can't be parsed as the message of its method. Protobuf doesn't say which field is faulty."""
    return errors.InvalidField(
        "", f"the request isn't a {message_name}: check that it is whole, of this type, and that its texts are UTF-8"
    )


def _readable(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise request.error
    return request


async def _all_readable(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    # gRPC's request iterator does the same with one more generator, whose cost is measurable at 10,000 requests a second.
    while (request := await context.read()) is not grpc.aio.EOF:
        yield _readable(request)


_Admit: TypeAlias = Callable[[grpc.aio.ServicerContext[Any, Any]], None]
"""Raises Unauthenticated or PermissionDenied unless the caller may call the method."""


def _admitted_stream(
    handler: grpc.RpcMethodHandler[Any, Any], admit: _Admit, read: Callable[[bytes], Any], *, ended: Callable[[], None]
) -> grpc.RpcMethodHandler[Any, Any]:
    """Wraps a method with a stream of answers. Calls `ended` if a stream is ended because its peer doesn't read."""
    streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

    async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            admit(context)
            await write_all(streaming(_parsed(handler, request, context), context), context)
        except Unread as error:
            ended()
            await abort_unread(context, error)
        except errors.TandemError as error:
            await abort(context, error)

    make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
    return make(serve, read, handler.response_serializer)


def _admitted_unary(
    handler: grpc.RpcMethodHandler[Any, Any], admit: _Admit, read: Callable[[bytes], Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    single: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            admit(context)
            return await single(_parsed(handler, request, context), context)
        except errors.TandemError as error:
            await abort(context, error)

    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(serve, read, handler.response_serializer)


def _parsed(handler: grpc.RpcMethodHandler[Any, Any], request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """The request, or its messages, as the method gets them. Raises InvalidField."""
    return _all_readable(context) if handler.request_streaming else _readable(request)


def _budgeted(handler: grpc.RpcMethodHandler[Any, Any], history: HistoryBudget) -> grpc.RpcMethodHandler[Any, Any]:
    """Wraps a method so that each of its pages is read within the budget: an answer, or a message of a stream."""
    if handler.response_streaming:
        streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with aclosing(streaming(request, context)) as pages:
                end = object()
                page = await history.read(caller().spiffe_id, lambda: anext(pages, end))
                while page is not end:
                    yield page
                    page = await history.read_in_stream(caller().spiffe_id, lambda: anext(pages, end))

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, handler.request_deserializer, handler.response_serializer)
    single: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return await history.read(caller().spiffe_id, lambda: single(request, context))

    make_single = (
        grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    )
    return make_single(answer, handler.request_deserializer, handler.response_serializer)


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Interceptor that admits a call only if its caller is authenticated and the protos allow the caller's role."""

    def __init__(self, dev_secret: str, history: HistoryBudget, unread: Counter | None = None) -> None:
        """`unread` counts by method the streams that are ended because their peers don't read; None counts nothing."""
        self._dev_secret = dev_secret
        self._history = history
        self._unread = unread
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        """Wrapped handlers of the methods that were called, by method."""
        self._open_streams = 0
        self._traces = telemetry.is_on()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            is_open = method.startswith(OPEN_METHODS)
            wrapped = self._bounded(handler) if is_open else self._guarded(handler, method, allowed_roles(method))
            self._handlers[method] = wrapped
        return self._handlers[method]

    def _bounded(self, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Wraps a method that anyone may call and limits its open streams. Otherwise strangers could use up all calls of the server."""
        if not handler.response_streaming:
            return handler
        streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if self._open_streams >= MAX_OPEN_STREAMS:
                await abort(context, errors.StoreFull("too many of these streams are open", retry_after_s=5.0))
            self._open_streams += 1
            try:
                # The health servicer writes its answers to the context, the reflection servicer yields them.
                answers = streaming(request, context)
                if hasattr(answers, "__aiter__"):
                    async for answer in answers:
                        await context.write(answer)
                else:
                    await answers
            finally:
                self._open_streams -= 1

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(serve, handler.request_deserializer, handler.response_serializer)

    def _guarded(
        self, handler: grpc.RpcMethodHandler[Any, Any], method: str, roles: frozenset[int]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wraps a method that needs a role."""

        def admit(context: grpc.aio.ServicerContext[Any, Any]) -> None:
            metadata = tuple(context.invocation_metadata() or ())
            who = self._authenticate(context, metadata)
            if who.role not in roles:
                logger().warning("call_refused", method=method, role=access_pb2.Role.Name(who.role))
                raise errors.PermissionDenied(f"{access_pb2.Role.Name(who.role)} may not call {method}")
            _caller.set(who)
            if self._traces:
                telemetry.carry_from(metadata)

        if reads_history(method):
            handler = _budgeted(handler, self._history)
        if handler.response_streaming:
            return _admitted_stream(handler, admit, _reader(handler, method), ended=lambda: self._note_unread(method))
        return _admitted_unary(handler, admit, _reader(handler, method))

    def _note_unread(self, method: str) -> None:
        logger().warning("stream_unread", method=method, caller=caller().spiffe_id, seconds=MAX_UNREAD_S)
        if self._unread:
            self._unread.labels(method.rpartition("/")[2]).inc()

    def _authenticate(
        self, context: grpc.aio.ServicerContext[Any, Any], metadata: Sequence[tuple[str, str | bytes]]
    ) -> Caller:
        proven = context.auth_context().get("peer_spiffe_id")
        if proven:
            who = caller_of(bytes(next(iter(proven))).decode())
            people = [value for key, value in metadata if key == PERSON]
            return console_user(who, people[0]) if people else who
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
                return caller_of(verify_dev_token(value.removeprefix("Bearer "), self._dev_secret))
        raise errors.Unauthenticated("no client certificate with a SPIFFE id and no token")


# ── streams that nobody reads ─────────────────────────────────────────────────────────────────────────────────────────

MAX_UNREAD_S = 20.0
"""Time after which a stream is ended if its peer reads nothing of it, seconds. Until then it uses up what its caller may have."""
STATUS_WITHIN_S = 5.0
"""Maximum time to send the final status of an unread stream, seconds. After it the call is given up."""


class Unread(TooMuchInProgress):
    """The peer read nothing of a stream for MAX_UNREAD_S."""

    def __init__(self) -> None:
        super().__init__(
            f"the stream was ended, as nothing of it was read for {MAX_UNREAD_S:g} s: open it once more and read its answers",
            retry_after_s=5.0,
        )


async def write_all(answers: AsyncGenerator[Any, None], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Writes the answers of a stream, and closes them at the end. Raises Unread if an answer waits for MAX_UNREAD_S."""
    watch = _Watch()
    try:
        async with aclosing(answers):
            async for answer in answers:
                watch.begin()
                await context.write(answer)
                watch.end()
    except asyncio.CancelledError:
        if watch.has_expired():
            raise Unread from None
        raise
    finally:
        watch.stop()


async def abort_unread(context: grpc.aio.ServicerContext[Any, Any], error: Unread) -> None:
    """Ends an unread stream. Its status waits behind the unread answers, so it may not get out, and the call is given up.

    gRPC keeps such a call until its peer reads or the connection ends, at the latest with the greatest age of a connection.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(STATUS_WITHIN_S):
            await abort(context, error)
    raise asyncio.CancelledError


class _Watch:
    """Cancels the current task if an answer is written for too long. It costs an answer two assignments, and no timer of its own."""

    def __init__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._since_s: float | None = None
        """Loop time at which the answer that is being written was handed over, seconds; None between two answers."""
        self._timer = self._loop.call_later(MAX_UNREAD_S, self._check)
        self._has_cancelled = False

    def begin(self) -> None:
        """Notes that an answer is handed over."""
        self._since_s = self._loop.time()

    def end(self) -> None:
        """Notes that it fitted into the buffers."""
        self._since_s = None

    def has_expired(self) -> bool:
        """Whether the task's cancellation is that of this watch. Then the task isn't cancelled any more."""
        if self._has_cancelled and self._task:
            self._task.uncancel()
        return self._has_cancelled

    def stop(self) -> None:
        """Ends the watch."""
        self._timer.cancel()

    def _check(self) -> None:
        waits_s = 0.0 if self._since_s is None else self._loop.time() - self._since_s
        if waits_s < MAX_UNREAD_S:
            self._timer = self._loop.call_later(MAX_UNREAD_S - waits_s, self._check)
        elif self._task is not None:
            self._has_cancelled = True
            self._task.cancel()
