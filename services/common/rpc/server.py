"""The gRPC server of every service and its health, and plaintext channels to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter

from services.common.errors import CannotBind
from services.common.messaging.bus import Bus
from services.common.observability.health import Readiness
from services.common.observability.telemetry import logger
from services.common.rpc.gatekeeper import PERSON, Gatekeeper
from services.common.rpc.gatekeeper import caller as caller
from services.common.rpc.history import HistoryBudget
from services.common.rpc.identity import sign_dev_token
from services.common.settings import CommonSettings

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

Metadata: TypeAlias = tuple[tuple[str, str], ...]

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


class _NamedServices:
    """Adds servicers to a server, as generated code asks the server to, and notes the names of their services."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server: Any = server  # its stubs lack `add_registered_method_handlers`
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Adds the handlers of services by their paths."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Adds the handlers of a service by its name."""
        self.names.append(service_name)
        self._server.add_registered_method_handlers(service_name, handlers)


@asynccontextmanager
async def serve(
    settings: CommonSettings,
    add_servicers: Callable[[grpc.aio.Server], None],
    *,
    history: HistoryBudget,
    unread: Counter | None = None,
) -> AsyncIterator[Server]:
    """Starts a gRPC server and stops it at the end of the block: it says NOT_SERVING, gives calls 5 s to finish, and stops.

    `add_servicers` adds the servicers to the server; reflection lists their services. `history` is the budget of the methods that read
    the history. `unread` is ProcessMetrics.streams_unread.
    """
    server = grpc.aio.server(
        interceptors=[Gatekeeper(settings.dev_secret, history, unread)],
        options=_SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    services = _NamedServices(server)
    add_servicers(cast(grpc.aio.Server, services))
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((*services.names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    credentials = _server_credentials(settings) if settings.tls else None
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        # gRPC's own text gives no reason.
        raise CannotBind(
            settings.host, settings.port, "it is in use, or isn't this process's to use; choose another"
        ) from None
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
