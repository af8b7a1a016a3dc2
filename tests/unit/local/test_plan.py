"""The plan of a mesh: the settings with which `tandem up` starts each service, with development tokens and with certificates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from services.client.mesh import NatsServer
from services.common.clock import MeshClock
from services.common.messaging.streams import LogMetadata
from services.local import processes
from services.local.processes import MeshPlan

PLAN = MeshPlan(
    folder=Path("/mesh"),
    base_port=7400,
    service_area="korea",
    dev_secret="secret",
    certificates=None,
    console_role="",
    server=NatsServer(
        url="nats://127.0.0.1:7422", monitor_url="http://127.0.0.1:7423", passwords={}, certificates=None
    ),
    log_meta=LogMetadata(log_id="log-1", partitions=2, clock=MeshClock(10, 1_000)),
)
TLS = replace(PLAN, dev_secret="", certificates=Path("/certs"))


def environment(plan: MeshPlan, name: str) -> dict[str, str]:
    return dict(next(program.environment for program in plan.programs() if program.name == name))


def test_with_development_tokens_the_console_starts_and_nobody_has_a_certificate() -> None:
    assert [program.name for program in PLAN.programs()] == [
        *(service.name for service in processes.SERVICES),
        "field",
        "console",
    ]
    assert PLAN.shown_addresses()["console"] == "http://127.0.0.1:7408" == PLAN.connection({}).console_url
    for program in PLAN.programs():
        assert program.environment["TANDEM_DEV_SECRET"] == "secret"
        assert program.environment["TANDEM_CLOCK_RATE"] == "10"
        assert "TANDEM_TLS_CERT" not in program.environment
        assert ("TANDEM_NATS_URL" in program.environment) is (program.name not in ("console", "field"))


def test_with_certificates_each_service_has_its_own_and_the_console_needs_a_provider() -> None:
    assert not TLS.has_console and TLS.console_url == "" and "console" not in TLS.shown_addresses()
    assert environment(TLS, "ingest")["TANDEM_TLS_CERT"] == "/certs/tandem-service-ingest/tls.crt"
    field = environment(TLS, "field")
    assert field["TANDEM_TLS_CERT"] == field["TANDEM_HTTP_TLS_CERT"] == "/certs/tandem-service-field/tls.crt"
    assert "TANDEM_NATS_URL" not in field and TLS.shown_addresses()["field"] == "https://127.0.0.1:7409"
    with_provider = replace(TLS, console_role="police")
    console = environment(with_provider, "console")
    assert console["TANDEM_TLS_CERT"] == "/certs/npa-desk-console/tls.crt"
    assert console["TANDEM_HTTP_TLS_KEY"] == "/certs/tandem-service-console/tls.key"
    assert with_provider.console_url == "https://127.0.0.1:7408"
    assert not replace(TLS, console_role="unknown").has_console
