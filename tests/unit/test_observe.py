"""The port of metrics and health says what gRPC health says."""

from __future__ import annotations

import aiohttp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import rpc
from services.common.observe import observed
from services.common.settings import CommonSettings


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_ready_is_what_grpc_says_and_health_is_that_it_runs() -> None:
    async with (
        rpc.serve(CommonSettings(port=0), lambda server: None) as server,
        observed("127.0.0.1", 0, lambda: server.unready) as port,
        rpc.channel(f"127.0.0.1:{server.port}") as channel,
    ):

        async def said() -> tuple[int, tuple[int, str]]:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), wait_for_ready=True
            )
            return answer.status, await get(port, "/readyz")

        states = health_pb2.HealthCheckResponse
        assert await said() == (states.NOT_SERVING, (503, "is starting\n"))
        await server.ready()
        assert await said() == (states.SERVING, (200, "ready\n"))
        await server.not_ready("the store is away")
        assert await said() == (states.NOT_SERVING, (503, "the store is away\n"))
        assert await get(port, "/healthz") == (200, "runs\n")


async def test_what_is_counted_is_shown_in_prometheus_format() -> None:
    async with observed("127.0.0.1", 0, lambda: "") as port:
        status, text = await get(port, "/metrics")
        assert status == 200 and "# TYPE tandem_http_closed_total counter" in text
        assert (await get(port, "/"))[0] == 404
