"""`tandem trace`: show the steps of an incident in order, with their durations and the times that were due."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import typer
import uvloop
from google.protobuf import json_format

from services.cli import arguments, waterfall
from services.cli.calls import call, may_succeed_later
from services.cli.failure import FAILED, CommandFailed
from services.cli.simulate import outcome
from services.cli.simulate.actors import REVIEWER
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.cli.terminal import for_results
from services.cli.waterfall import DECISION, Selection, TraceView
from services.common.clock import wall_us
from services.common.messaging import flow
from services.common.observability.expected_times import expected_times
from services.common.observability.lateness import ARRIVES, ExpectedTime
from services.common.rpc.server import UNARY_DEADLINE_S
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, trace_pb2


class TracePart(StrEnum):
    """Part of a trace that `--part` shows: the decision, or one leg."""

    DECISION = DECISION
    PROBATION = "probation"
    POLICE = "police"
    WARNING = "warning"


def trace(
    incident_id: Annotated[
        str, typer.Argument(metavar="[INCIDENT]", help="Id of the incident; default: the newest.")
    ] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    *,
    part: Annotated[
        list[TracePart] | None, typer.Option(help="Show only this part; may be given several times.")
    ] = None,
    late: Annotated[bool, typer.Option("--late", help="Show only steps that came too late, or not at all.")] = False,
    depth: Annotated[int | None, typer.Option(help="Fold the steps below this level; 0 is the root.", min=0)] = None,
    from_s: Annotated[float, typer.Option(help="Show the time from here on, seconds after the start.", min=0)] = 0.0,
    until_s: Annotated[float | None, typer.Option(help="Show the time until here, seconds after the start.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Show ids and messages on a narrow terminal too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show an incident's trace, from the deciding report to the answers of both legs, and what was late."""
    if incident_id:
        arguments.required_id("INCIDENT", incident_id)
    if until_s is not None and until_s <= from_s:
        raise typer.BadParameter(
            "must be greater than --from-s (example: --from-s 5 --until-s 20)", param_hint="--until-s"
        )
    shown = uvloop.run(_read(mesh.load(folder), incident_id))
    if as_json:
        print(json.dumps(to_json(shown), ensure_ascii=False))
        return
    console = for_results()
    selection = Selection(
        legs=[shown_part.value for shown_part in part or ()],
        late_only=late,
        depth=depth,
        from_s=from_s,
        until_s=until_s,
        details=wide,
    )
    console.print(*waterfall.views(shown, console, selection), sep="\n")


def to_json(shown: TraceView) -> dict[str, Any]:
    """A trace as one JSON object: the registry's answer, the arrivals that the legs expect, and the medians of like incidents.

    Times are microseconds of wall time since 1970 UTC, as texts, like all 64-bit numbers of the registry's answer.
    """
    return {
        **json_format.MessageToDict(shown.trace, preserving_proto_field_name=True),
        "arrivals": [_arrival_json(expected) for expected in shown.expected if expected.name == ARRIVES],
        "like_incidents": json_format.MessageToDict(shown.like, preserving_proto_field_name=True),
        "legs_without_answer": list(shown.silent),
    }


def _arrival_json(expected: ExpectedTime) -> dict[str, Any]:
    return {
        "leg": expected.leg,
        "assignment_id": expected.assignment_id,
        "outcome": expected.outcome.value,
        "since_us": str(expected.since_us),
        "due_us": str(expected.due_us),
        **({} if expected.met_us is None else {"met_us": str(expected.met_us)}),
    }


async def _read(running: MeshConnection, incident_id: str) -> TraceView:
    async with mesh.connect(running) as clients:
        if not incident_id:
            known, _ = await outcome.read_answering(clients)
            if not known:
                raise CommandFailed("no incidents", FAILED)
            incident_id = known[-1].incident_id
        me = clients.identity(REVIEWER)
        request = trace_pb2.GetTraceRequest(incident_id=incident_id)
        answer: trace_pb2.GetTraceResponse = await call(clients.traces.GetTrace, request, me)
        compare = expected_time_pb2.CompareTraceRequest(incident_id=incident_id)
        like: expected_time_pb2.CompareTraceResponse = await call(clients.traces.CompareTrace, compare, me)
        assignments, silent = await _assignments(clients, incident_id)
    expected = expected_times(answer, assignments, clients.clock, now_us=wall_us())
    return TraceView(answer, expected, like, silent=silent)


async def _assignments(clients: Clients, incident_id: str) -> tuple[list[dispatch_pb2.Assignment], list[str]]:
    """The assignments of both agencies, and the legs that don't answer. Each leg knows the travel times of its own units alone."""
    found: list[dispatch_pb2.Assignment] = []
    silent: list[str] = []
    request, me = dispatch_pb2.ListIncidentsRequest(incident_id=incident_id), clients.identity(REVIEWER)
    for leg in flow.AGENCY_LEGS:
        try:
            answer = await clients.dispatch[leg].ListIncidents(request, metadata=me, timeout=UNARY_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if not may_succeed_later(error):
                raise
            silent.append(leg)
            continue
        own = (assignment for incident in answer.incidents for assignment in incident.assignments)
        found += [assignment for assignment in own if assignment.HasField("arrival_due_at")]
    return found, silent
