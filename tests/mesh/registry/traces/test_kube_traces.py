"""The registry's variables in the manifests, as the exporter takes them: to a collector that wants a certificate."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from services.cli.commands.mesh import certs
from services.common.rpc.certificates import files_of
from services.registry.traces.domain.spans import TraceSpan
from services.registry.traces.export import readable
from tests.support.common.otlp import collecting
from tools.kube import identities
from tools.kube.__main__ import K8S
from tools.kube.render import containers, render

ENDPOINT, KEY, CERT = (f"OTEL_EXPORTER_OTLP_{one}" for one in ("ENDPOINT", "CLIENT_KEY", "CLIENT_CERTIFICATE"))
SPAN = TraceSpan("0" * 31 + "1", "0" * 15 + "1", "", "registry", "incident", 1_000, 2_000)


def variables() -> dict[str, str]:
    """Those of the exporter, of the rendered registry."""
    (one,) = (
        one for one in render(K8S / "base") if (one["kind"], one["metadata"]["name"]) == ("Deployment", "registry")
    )
    return {each["name"]: each["value"] for each in containers(one)[0]["env"] if each["name"].startswith("OTEL_")}


@pytest.mark.parametrize("proves_itself", [True, False])
def test_spans_go_by_mutual_tls_and_not_without_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proves_itself: bool
) -> None:
    registry, collector = identities.identity_of("registry"), identities.identity_of("otel-collector")
    certs.issue(tmp_path, (registry, collector), certs.LOOPBACK, timedelta(hours=1))
    theirs, ours = files_of(tmp_path, collector), files_of(tmp_path, registry)
    pairs = [(theirs.key.read_bytes(), theirs.cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(pairs, theirs.authority.read_bytes(), require_client_auth=True)
    with collecting(credentials) as (taken, endpoint):
        given = variables()
        assert {ENDPOINT, KEY, CERT} < given.keys()
        for name, value in given.items():
            monkeypatch.setenv(name, value.replace("/tls/", f"{ours.cert.parent}/"))
        monkeypatch.setenv(ENDPOINT, endpoint)
        if not proves_itself:
            monkeypatch.delenv(KEY)
            monkeypatch.delenv(CERT)
        exporter = OTLPSpanExporter(timeout=3)
        result = exporter.export([readable(SPAN)])
        exporter.shutdown()
        assert (result is SpanExportResult.SUCCESS) is proves_itself
        assert [one for one, _ in taken.spans()] == (["registry"] if proves_itself else [])
