"""Health, metrics and crashes of a process: probes agree with gRPC health, and a busy or hung event loop and a crash are reported."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.health_port import observed, watch_certificates
from services.common.observability.health import LOOP_HUNG_AFTER_S, Heart
from services.common.observability.metrics import unexposed
from services.common.priority import PriorityGate
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.settings import CommonSettings
from services.local.authority import Authority


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_readyz_agrees_with_grpc_health_and_healthz_answers_while_the_loop_runs() -> None:
    async with (
        rpc.serve(CommonSettings(port=0), lambda server: None, history=HistoryBudget(PriorityGate())) as server,
        observed("127.0.0.1", 0, lambda: server.unready, metrics=unexposed()) as port,
        rpc.channel(f"127.0.0.1:{server.port}") as channel,
    ):

        async def states_of_both() -> tuple[int, tuple[int, str]]:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), wait_for_ready=True
            )
            return answer.status, await get(port, "/readyz")

        states = health_pb2.HealthCheckResponse
        assert await states_of_both() == (states.NOT_SERVING, (503, "is starting\n"))
        await server.ready()
        assert await states_of_both() == (states.SERVING, (200, "ready\n"))
        await server.not_ready("the store is away")
        assert await states_of_both() == (states.NOT_SERVING, (503, "the store is away\n"))
        assert await get(port, "/healthz") == (200, "runs\n")


async def test_metrics_are_exposed_in_the_prometheus_format() -> None:
    async with observed("127.0.0.1", 0, lambda: "", metrics=unexposed()) as port:
        status, text = await get(port, "/metrics")
        assert status == 200 and "# TYPE tandem_http_closed_total counter" in text
        assert (await get(port, "/"))[0] == 404


def fetch(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET request, for a thread."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_busy_event_loop_is_alive_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with observed("127.0.0.1", 0, lambda: "", metrics=unexposed()) as port:
        with ThreadPoolExecutor() as pool, monkeypatch.context() as impatient:
            impatient.setattr("services.common.health_port.LOOP_WITHIN_S", 0.2)
            answers = [pool.submit(fetch, port, path) for path in ("/livez", "/readyz")]
            # Blocks without await, so that this event loop doesn't turn.
            alive, ready = (answer.result() for answer in answers)
        assert alive == (200, "lives\n")
        assert ready == (503, "the event loop hasn't answered for 0 s\n")
        assert await get(port, "/readyz") == (200, "ready\n")


async def test_a_hung_event_loop_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async with observed("127.0.0.1", 0, lambda: "", metrics=unexposed()) as port:
        monkeypatch.setattr(Heart, "loop_age_s", lambda self: LOOP_HUNG_AFTER_S + 1)
        assert await get(port, "/livez") == (503, "the event loop has hung for 16 s\n")


async def test_a_ready_process_reports_that_it_is_degraded() -> None:
    async with observed(
        "127.0.0.1", 0, lambda: "", metrics=unexposed(), degraded=lambda: "traces hasn't been read for 6 s"
    ) as port:
        assert await get(port, "/readyz") == (200, "ready, but traces hasn't been read for 6 s\n")


def test_a_crash_by_a_signal_says_where_each_thread_was() -> None:
    crash = "import os, signal; from services.common.observability import telemetry; telemetry.configure('test'); {}"
    crash = crash.format("os.kill(os.getpid(), signal.SIGSEGV)")
    ended = subprocess.run([sys.executable, "-c", crash], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in ended.stderr and 'File "<string>", line 1' in ended.stderr


async def test_the_remaining_time_of_certificates_is_measured_at_each_scrape(tmp_path: Path) -> None:
    authority, file = Authority.made("test"), tmp_path / "tls.crt"
    metrics = unexposed()
    watch_certificates({"mesh": file}, metrics)

    def remaining_days() -> float:
        shown = metrics.registry.get_sample_value("tandem_certificate_remaining_seconds", {"certificate": "mesh"})
        assert shown is not None
        return round(shown / 86_400, 1)

    assert remaining_days() == 0.0  # no file yet
    file.write_bytes(authority.issue(["spiffe://vendor/acme"], (), timedelta(days=3)).cert)
    assert remaining_days() == 3.0
    file.write_bytes(authority.issue(["spiffe://vendor/acme"], (), timedelta(days=30)).cert)
    assert remaining_days() == 30.0
    file.write_text("torn")
    assert remaining_days() == 0.0
