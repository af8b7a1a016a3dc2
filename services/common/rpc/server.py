"""The gRPC server of every service: its interceptor for authentication and roles, its health, and the mapping of errors to statuses."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pool, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.common.messaging.bus import Bus
from services.common.observability import tracing
from services.common.observability.readiness import Readiness
from services.common.observability.telemetry import logger
from services.common.rpc import errors, wire
from services.common.rpc.identity import Caller, caller_of, console_user, sign_dev_token, verify_dev_token
from services.common.settings import CommonSettings
from tandem.common.v1 import access_pb2

UNARY_DEADLINE_S = 5.0
"""Deadline that callers give to unary calls, seconds."""
GRACE_S = 5.0
"""Maximum time for calls in progress when a server stops, seconds."""
NOT_READY_AFTER_S = 10.0
"""Time without a working JetStream after which a service says NOT_SERVING, seconds."""
HEALTH_INTERVAL_S = 1.0
"""Interval of updates of a service's health, seconds."""
MAX_MESSAGE_BYTES = 1 << 20
MAX_CALLS = 20_000
"""Maximum number of open and waiting calls of a server."""
OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
"""Prefixes of the methods that anyone may call: the named exceptions of the rule that each method needs a role."""
MAX_OPEN_STREAMS = 200
"""Maximum number of concurrent streams of OPEN_METHODS, for all callers together."""

_SERVER_OPTIONS = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # the default of a minute overrides the keepalive timeout
    ("grpc.keepalive_permit_without_calls", 1),
    # Must allow the pings of our clients: the server closes connections that ping more often.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.max_concurrent_streams", 512),
    # Above these limits gRPC cancels waiting calls of any caller. The defaults cancel calls at random from 1,000 on.
    ("grpc.server.max_pending_requests", MAX_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_CALLS),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)
CHANNEL_OPTIONS = (
    ("grpc.lb_policy_name", "round_robin"),
    # gRPC's threads answer pings, not the event loop. So a busy server answers, and a stopped one is noticed within 5 s.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # The minimum also limits the duration of an attempt. On a busy machine the first frame may be late, which must not fail a call.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

ERROR_DOMAIN = "tandem"
"""Domain of the error codes in a status's ErrorInfo."""
PERSON = "tandem-person"
"""Metadata key with the name of the person for whom a console calls."""
Metadata: TypeAlias = tuple[tuple[str, str], ...]

_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def caller() -> Caller:
    """Authenticated caller of the rpc that the current task serves."""
    return _caller.get()


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_STATUS: tuple[tuple[type[errors.TandemError], int], ...] = (
    (errors.InvalidField, code_pb2.INVALID_ARGUMENT),
    (errors.NotFound, code_pb2.NOT_FOUND),
    (errors.Conflict, code_pb2.ABORTED),
    (errors.FailedPrecondition, code_pb2.FAILED_PRECONDITION),
    (errors.Unauthenticated, code_pb2.UNAUTHENTICATED),
    (errors.PermissionDenied, code_pb2.PERMISSION_DENIED),
    (errors.StoreFull, code_pb2.RESOURCE_EXHAUSTED),
    (errors.Unavailable, code_pb2.UNAVAILABLE),
)


def status_of(error: errors.TandemError) -> status_pb2.Status:
    """gRPC status of an error, with BadRequest, ErrorInfo or RetryInfo as its detail."""
    code = next((code for kind, code in _STATUS if isinstance(error, kind)), code_pb2.INTERNAL)
    status = status_pb2.Status(code=code, message=str(error))
    detail: Any = None
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.reason)
        detail = error_details_pb2.BadRequest(field_violations=[violation])
    elif isinstance(error, errors.FailedPrecondition) and error.code:
        detail = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)
    elif isinstance(error, errors.RetryableError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.TandemError) -> NoReturn:
    """Ends a call with the gRPC status of an error."""
    status = rpc_status.to_status(status_of(error))
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError("abort returned")


# ── the interceptor ──────────────────────────────────────────────────────────────────────────────────────────────────


def allowed_roles(method: str) -> frozenset[int]:
    """Roles that may call a method such as /tandem.ingest.v1.IngestService/Report, according to the protos. Empty if they name none."""
    service_name, _, method_name = method.lstrip("/").partition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        options = service.methods_by_name[method_name].GetOptions()
    except KeyError:
        return frozenset()
    return frozenset(options.Extensions[access_pb2.allowed_roles])


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
            return _Unreadable(errors.InvalidField(*wire.fault(service.methods_by_name[method_name].input_type, raw)))

    return deserialize


def _readable(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise request.error
    return request


async def _all_readable(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    # gRPC's request iterator does the same with one more generator, whose cost is measurable at 10,000 requests a second.
    while (request := await context.read()) is not grpc.aio.EOF:
        yield _readable(request)


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Interceptor that admits a call only if its caller is authenticated and the protos allow the caller's role."""

    def __init__(self, dev_secret: str) -> None:
        self._dev_secret = dev_secret
        self._roles: dict[str, frozenset[int]] = {}
        self._open_streams = 0
        self._traces = tracing.is_on()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if method.startswith(OPEN_METHODS):
            return self._bounded(handler)
        if method not in self._roles:
            self._roles[method] = allowed_roles(method)
        return self._guarded(handler, method, self._roles[method])

    def _bounded(self, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Wraps a method that anyone may call. It limits the method's streams, or strangers could use up all calls of the server."""
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
        def admit(context: grpc.aio.ServicerContext[Any, Any]) -> None:
            who = self._authenticate(context)
            if who.role not in roles:
                logger().warning("call_refused", method=method, role=access_pb2.Role.Name(who.role))
                raise errors.PermissionDenied(f"{access_pb2.Role.Name(who.role)} may not call {method}")
            _caller.set(who)
            if self._traces:
                tracing.carry_from(context.invocation_metadata() or ())

        def readable(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return _all_readable(context) if handler.request_streaming else _readable(request)

        if handler.response_streaming:
            streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def serve_stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
                try:
                    admit(context)
                    async for response in streaming(readable(request, context), context):
                        yield response
                except errors.TandemError as error:
                    await abort(context, error)

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(serve_stream, _reader(handler, method), handler.response_serializer)

        single: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                admit(context)
                return await single(readable(request, context), context)
            except errors.TandemError as error:
                await abort(context, error)

        make_single = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make_single(serve, _reader(handler, method), handler.response_serializer)

    def _authenticate(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        proven = context.auth_context().get("peer_spiffe_id")
        if proven:
            who = caller_of(bytes(next(iter(proven))).decode())
            people = [value for key, value in context.invocation_metadata() or () if key == PERSON]
            return console_user(who, people[0]) if people else who
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
                return caller_of(verify_dev_token(value.removeprefix("Bearer "), self._dev_secret))
        raise errors.Unauthenticated("no client certificate with a SPIFFE id and no token")


# ── server ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Server:
    """A started gRPC server. Its health is SERVING after a call of `ready`."""

    aio: grpc.aio.Server
    port: int
    _health: health.aio.HealthServicer
    unready: str = "is starting"
    """Reason for the health NOT_SERVING. Empty while the health is SERVING."""
    degraded: str = ""
    """Work that has to wait although the health is SERVING. Empty if there is none."""

    async def ready(self) -> None:
        """Sets the health to SERVING: the service can do its work."""
        if self.unready:
            self.unready = ""
            logger().info("serving")
            await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def not_ready(self, reason: str) -> None:
        """Sets the health to NOT_SERVING, so that proxies send callers to another process."""
        if not self.unready:
            logger().info("not_serving", reason=reason)
            await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        self.unready = reason


@asynccontextmanager
async def serve(
    settings: CommonSettings, add_servicer: Callable[[grpc.aio.Server], None], *service_names: str
) -> AsyncIterator[Server]:
    """Starts a gRPC server and stops it at the end of the block: it says NOT_SERVING, gives calls 5 s to finish, and stops."""
    server = grpc.aio.server(
        interceptors=[Gatekeeper(settings.dev_secret)], options=_SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS
    )
    add_servicer(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    credentials = _server_credentials(settings) if settings.tls else None
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await health_servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await server.start()
    logger().info("listening", port=port, tls=settings.tls)
    bound = Server(server, port, health_servicer)
    try:
        yield bound
    finally:
        bound.unready = "is stopping"
        await health_servicer.enter_graceful_shutdown()
        await server.stop(GRACE_S)


def _server_credentials(settings: CommonSettings) -> grpc.ServerCredentials:
    def fetch() -> grpc.ServerCertificateConfiguration:
        cert, key, authority = settings.tls_files()
        return grpc.ssl_server_certificate_configuration(
            [(key.read_bytes(), cert.read_bytes())], authority.read_bytes()
        )

    # gRPC calls `fetch` for each connection, so that a certificate can be replaced without a restart.
    return grpc.dynamic_ssl_server_credentials(fetch(), fetch, require_client_authentication=True)


async def keep_health(server: Server, readiness: Readiness, bus: Bus | None = None) -> None:
    """Keeps a server's health up to date with the process's readiness, until cancelled.

    With `bus`, the process also isn't ready once JetStream hasn't worked for 10 s.
    """
    loop = asyncio.get_running_loop()
    works_until_s = loop.time()
    while True:
        reason = readiness.unable()
        if bus and await bus.works():
            works_until_s = loop.time()
        elif bus and loop.time() - works_until_s > NOT_READY_AFTER_S:
            reason = f"JetStream hasn't worked for {NOT_READY_AFTER_S:.0f} s"
        server.degraded = readiness.degraded()
        await (server.not_ready(reason) if reason else server.ready())
        await asyncio.sleep(HEALTH_INTERVAL_S)


# ── client ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def channel(address: str) -> grpc.aio.Channel:
    """Opens a plaintext channel to a service on loopback. It reconnects by itself. Give each unary call a deadline."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


def on_behalf_of(name: str) -> Metadata:
    """Call metadata with which a console names the person for whom it calls."""
    return ((PERSON, name),)


def bearer(spiffe_id: str, dev_secret: str) -> Metadata:
    """Call metadata with a development token for a SPIFFE id."""
    return (("authorization", f"Bearer {sign_dev_token(spiffe_id, dev_secret)}"),)
