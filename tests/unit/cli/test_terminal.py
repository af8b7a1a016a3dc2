"""Text from servers reaches the terminal as printable text, in tables, lines and errors."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
import pytest
from rich.console import RenderableType

from services.cli import __main__ as command_line
from services.cli.commands import incidents
from services.cli.terminal import SafeConsole
from services.client import outcome
from services.common import failure
from services.common.failure import CommandFailed
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import trace_pb2

EVIL = "\x1b[2J\x1b[1A[bold]signature good[/]\r\u202e\x9b2J:smile:"


def printed(*shown: RenderableType) -> str:
    screen = io.StringIO()
    SafeConsole(file=screen, soft_wrap=True, width=400, highlight=False).print(*shown, sep="\n")
    return screen.getvalue()


def check(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\x1b[2J\\x1b[1A[bold]signature good[/]\\r\\u202e\\x9b2J:smile:" in text


def test_a_trace_escapes_text_from_the_registry() -> None:
    root = trace_pb2.Span(trace_id="t", span_id="a", service=EVIL, name=EVIL, start_us=1, end_us=2)
    root.attributes.update({"incident_id": EVIL, "who": EVIL, "stored": EVIL})
    trace = trace_pb2.GetTraceResponse(trace_id="t", spans=[root])
    for width in (400, 80):  # as a table, and as lines
        selection = incidents.Selection(details=True)
        check(printed(*incidents.trace_views(incidents.TraceView(trace), SafeConsole(width=width), selection)))


def test_incidents_escape_text_from_the_legs() -> None:
    answer = outcome.AssignmentOutcome("police", EVIL, EVIL, True, 1.0, 1)
    incident = outcome.IncidentOutcome(EVIL, {EVIL}, 1, 2, [answer])
    check(printed(*incidents.outcome_tables([incident])))


def test_a_person_who_may_not_have_been_warned_is_shown_with_the_reason() -> None:
    assignment = dispatch_pb2.Assignment(
        assignment_id="assignment-1",
        incident_id="incident-1",
        leg=alert_pb2.POLICE,
        subject_id="person-1",
        order_ids=["order-1"],
        state=dispatch_pb2.NOTIFIED,
        demand=geometry_pb2.NOTIFY,
        person_flag=dispatch_pb2.PersonFlag(flag=dispatch_pb2.NO_RECEIPT),
    )
    incident = dispatch_pb2.Incident(incident_id="incident-1", order_ids=["order-1"], assignments=[assignment])
    incident.opened_at.FromMilliseconds(1_000)
    (found,) = outcome._joined({"police": [incident]})
    assert found.to_json()["legs"][0]["person_flag"] == "NO_RECEIPT"
    assert "NOTIFIED, NO_RECEIPT" in printed(*incidents.outcome_tables([found]))


@pytest.mark.parametrize("error", ["refused", "plain"])
def test_an_error_of_a_service_is_one_printable_line(
    error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = grpc.aio.Metadata()
    raised: Any = (
        grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, metadata, metadata, details=EVIL + "\nsecond line")
        if error == "refused"
        else CommandFailed(EVIL)
    )

    def app(**_: Any) -> Iterable[None]:
        raise raised

    monkeypatch.setattr(command_line, "app", app)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    printed_error = capsys.readouterr().err
    check(printed_error)
    assert ended.value.code in (failure.FAILED, failure.MISUSED) and printed_error.count("\n") == 1
