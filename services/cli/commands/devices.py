"""`tandem reporting`, `tag`, `cctv`, `device-token` and `enrol`: how devices report, and what an agency does about one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import grpc
import grpc.aio
import typer
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from services.cli import usage
from services.cli.terminal import fitted, for_results
from services.client import mesh
from services.client.actors import DESKS, MOJ_RECORDS, NPA_RECORDS
from services.client.calls import Request, Response, call
from services.client.mesh import DEFAULT_FOLDER, OPERATOR, Clients, MeshConnection
from services.common import times
from services.common.failure import MISUSED, CommandFailed
from services.registry.domain.device_tokens import DEFAULT_VALID_S, MAX_KEEP_OLDER_S, MAX_VALID_S, MIN_VALID_S
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import cctv_pb2, device_token_pb2, disclosure_pb2, enrolment_pb2, tag_record_pb2

PROBATION_DESK = DESKS["probation"]

Basis = Annotated[str, typer.Option("--legal-basis", help="Code of the article that allows the disclosure.")]


def reporting(
    device: Annotated[str, typer.Option(help="Show this device only, also if nothing is asked of it.")] = "",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: usage.AsJson = False,
) -> None:
    """List the devices of which an interval between reports is asked: who asks, whether it was delivered, and what they do."""
    rows = [_reporting_row(listed) for listed in uvloop.run(_read_reporting(mesh.load(folder), device))]
    if as_json:
        print(json.dumps({"devices": rows}))
        return
    console = for_results()
    if not rows:
        console.print("no interval is asked of any device")
        return
    table = Table("device", "asked s", "by", "until", "delivery", "observed s", "obeys", "slow", "located")
    for row in rows:
        ask = row["asks"][0] if row["asks"] else {}
        located = f"{row['locates_answered']} of {row['locates_sent']}" if row["locates_sent"] else ""
        shown = (
            row["device_id"],
            ask.get("interval_s"),
            ask.get("by"),
            ask.get("until"),
            row["refused_because"] or row["delivery"],
            row["observed_interval_s"],
            row["obeys"],
            "slow" if row["slow"] else "",
            located,
        )
        table.add_row(*(str(value or "-") for value in shown))
    console.print(fitted(console, table))


def _reporting_row(listed: ingest_pb2.DeviceReporting) -> dict[str, Any]:
    delivery = command_pb2.CommandState.Name(listed.delivery).removeprefix("COMMAND_STATE_") if listed.delivery else ""
    return {
        "device_id": listed.device_id,
        "asks": [
            {
                "interval_s": ask.interval_s,
                "by": ask.asked_by,
                "asked_at": rfc3339(ask.asked_at),
                "until": rfc3339(ask.until),
                "refused": ask.refused,
            }
            for ask in listed.asks
        ],
        "delivery": delivery,
        "delivery_since": _moment(listed, "delivery_since"),
        "refused_because": listed.refused_because,
        "observed_interval_s": listed.observed_interval_s,
        "obeys": ingest_pb2.Obedience.Name(listed.obeys).removeprefix("OBEDIENCE_"),
        "slow": listed.slow,
        "last_fix": _moment(listed, "last_fix"),
        "locates_sent": listed.locates_sent,
        "locates_answered": listed.locates_answered,
    }


def _moment(listed: ingest_pb2.DeviceReporting, field: str) -> str:
    return rfc3339(getattr(listed, field)) if listed.HasField(field) else ""  # type: ignore[arg-type]


async def _read_reporting(running: MeshConnection, device_id: str) -> list[ingest_pb2.DeviceReporting]:
    listed: list[ingest_pb2.DeviceReporting] = []
    async with mesh.connect(running) as clients:
        request = ingest_pb2.ListReportingRequest(device_id=device_id)
        while True:
            answer = await call(clients.commands.ListReporting, request, clients.identity(OPERATOR))
            listed += answer.devices
            if not answer.next_page_token:
                return listed
            request.page_token = answer.next_page_token


tag_app = usage.group("Refusals, good cause and authorised removals of tags.")

RecordId = Annotated[str, typer.Argument(help="The Ministry's id of the record.")]
Reason = Annotated[str, typer.Option(help="Why, at most 500 characters.")]


@tag_app.command(cls=usage.Command)
def refused(
    record: RecordId,
    wearer: Annotated[str, typer.Option(help="Id of the wearer.")],
    *,
    order: Annotated[str, typer.Option(help="Id of the order of item 3-2.")],
    at: Annotated[str, typer.Option(help="When the respondent refused, RFC 3339.")],
    reason: Reason,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Record that a respondent refused to be fitted with a tag. The police are notified at once."""
    request = tag_record_pb2.RecordRefusalRequest(
        record_id=record, wearer_id=wearer, order_id=order, refused_at=option_timestamp("at", at), reason=reason
    )
    answer = ask_as_probation(folder, lambda clients: clients.tag_records.RecordRefusal, request)
    print(_outcome(answer.outcome))


def good_cause(
    record: RecordId,
    wearer: Annotated[str, typer.Option(help="Id of the wearer.")],
    *,
    order: Annotated[str, typer.Option(help="Id of the order of item 3-2.")],
    since: Annotated[str, typer.Option("--from", help="Since when the cause exists, RFC 3339; may be past.")],
    until: Annotated[str, typer.Option(help="Until when the cause holds, RFC 3339, at most 30 days ahead.")],
    reason: Reason,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Record good cause for a missing tag. The notice to the police ends, or is withheld, until the cause ends."""
    request = tag_record_pb2.RecordGoodCauseRequest(
        record_id=record, wearer_id=wearer, order_id=order, until=option_timestamp("until", until), reason=reason
    )
    getattr(request, "from").CopyFrom(option_timestamp("from", since))
    answer = ask_as_probation(folder, lambda clients: clients.tag_records.RecordGoodCause, request)
    print(_outcome(answer.outcome))


def allow_removal(
    record: RecordId,
    device: Annotated[str, typer.Option(help="Id of the tag.")],
    *,
    until: Annotated[str, typer.Option(help="End of the removal, RFC 3339.")],
    allowed_by: Annotated[str, typer.Option(help="Id of the head of office who allowed it.")],
    reason: Reason,
    since: Annotated[str, typer.Option("--from", help="Start, RFC 3339. Now if it isn't given.")] = "",
    afterwards: Annotated[bool, typer.Option("--afterwards", help="There was no time for an approval.")] = False,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Record an authorised removal of a tag. A strap that is still open when the removal ends raises an alarm."""
    request = tag_record_pb2.AllowRemovalRequest(
        record_id=record,
        device_id=device,
        until=option_timestamp("until", until),
        reason=reason,
        allowed_by=allowed_by,
        afterwards=afterwards,
    )
    if since:
        getattr(request, "from").CopyFrom(option_timestamp("from", since))
    answer = ask_as_probation(folder, lambda clients: clients.tag_records.AllowRemoval, request)
    print(_outcome(answer.outcome))


def end_removal(
    record: RecordId,
    at: Annotated[str, typer.Option(help="The new end, RFC 3339.")],
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """End an authorised removal early, or cancel it before it begins."""
    request = tag_record_pb2.EndRemovalRequest(record_id=record, ended_at=option_timestamp("at", at))
    answer = ask_as_probation(folder, lambda clients: clients.tag_records.EndRemoval, request)
    print(_outcome(answer.outcome))


def list_records(
    wearer: Annotated[str, typer.Argument(help="Id of the wearer.")],
    basis: Basis = "TAG_31_8_2",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """List all records about a wearer's tags. The ledger gets a row."""
    request = tag_record_pb2.ListTagRecordsRequest(wearer_id=wearer, grounds=enforcement_grounds(basis))
    answer = ask_as_probation(folder, lambda clients: clients.tag_records.ListTagRecords, request)
    view = Table("record", "kind", "period", "of", "by", "reason")
    for each in answer.records:
        kind = tag_record_pb2.TagRecordKind.Name(each.kind).removeprefix("TAG_RECORD_KIND_").lower()
        period = rfc3339(getattr(each, "from"))
        if each.HasField("until"):
            period = f"{period}\nuntil {rfc3339(each.until)}"
        if each.HasField("ended_at"):
            period = f"{period}\nended {rfc3339(each.ended_at)}"
        by = [f"{each.recorded_by}\n{rfc3339(each.recorded_at)}"]
        by += [f"allowed by {each.allowed_by}"] if each.allowed_by else []
        by += [f"ended by {each.ended_by}"] if each.ended_by else []
        view.add_row(
            each.record_id,
            f"{kind}\nafterwards" if each.afterwards else kind,
            period,
            each.order_id or each.device_id,
            "\n".join(by),
            each.reason,
        )
    print_table(view, empty="no records")
    print(f"disclosure {answer.disclosure_id}")


def _outcome(outcome: tag_record_pb2.TagRecordOutcome.ValueType) -> str:
    return tag_record_pb2.TagRecordOutcome.Name(outcome).removeprefix("TAG_RECORD_OUTCOME_").lower()


tag_app.command("good-cause", cls=usage.Command)(good_cause)
tag_app.command("allow-removal", cls=usage.Command)(allow_removal)
tag_app.command("end-removal", cls=usage.Command)(end_removal)
tag_app.command("list", cls=usage.Command)(list_records)


cctv_app = usage.group("Requests to local governments for CCTV (Tag Act 16-3).")
_GROUNDS = {"9-2": cctv_pb2.CCTV_GROUND_CONDITION_9_2, "14-1": cctv_pb2.CCTV_GROUND_DUTY_14_1}
_STEPS = {
    "provided": cctv_pb2.CCTV_STEP_PROVIDED,
    "declined": cctv_pb2.CCTV_STEP_DECLINED,
    "viewing-ended": cctv_pb2.CCTV_STEP_VIEWING_ENDED,
    "wearer-notified": cctv_pb2.CCTV_STEP_WEARER_NOTIFIED,
}

RequestId = Annotated[str, typer.Argument(help="The Ministry's id of the request.")]


def request_cctv(
    request_id: RequestId,
    wearer: Annotated[str, typer.Option(help="Id of the wearer.")],
    ground: Annotated[str, typer.Option(help="The duty that was breached: 9-2 or 14-1.")],
    *,
    government: Annotated[str, typer.Option(help="The local government.")],
    details: Annotated[str, typer.Option(help="Where, when, and why it is urgent, at most 1,000 characters.")],
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Enter a request. It is a row of the ledger, too."""
    if ground not in _GROUNDS:
        raise CommandFailed(f'--ground: "{ground}" must be one of {", ".join(_GROUNDS)}', MISUSED)
    message = cctv_pb2.RequestCctvRequest(
        request_id=request_id, wearer_id=wearer, ground=_GROUNDS[ground], government=government, details=details
    )
    answer = ask_as_probation(folder, lambda clients: clients.cctv.RequestCctv, message)
    _print_requests([answer.request])
    print(f"disclosure {answer.disclosure_id}")


def cctv_step(
    request_id: RequestId,
    name: Annotated[str, typer.Argument(metavar="STEP", help=", ".join(_STEPS))],
    at: Annotated[str, typer.Option(help="When it happened, RFC 3339.")],
    *,
    note: Annotated[str, typer.Option(help="How, at most 500 characters.")] = "",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Enter the next step of a request."""
    if name not in _STEPS:
        raise CommandFailed(f'"{name}" is no step; steps: {", ".join(_STEPS)}', MISUSED)
    message = cctv_pb2.RecordCctvStepRequest(
        request_id=request_id, step=_STEPS[name], at=option_timestamp("at", at), note=note
    )
    _print_requests([ask_as_probation(folder, lambda clients: clients.cctv.RecordCctvStep, message).request])


def list_requests(
    wearer: Annotated[str, typer.Option(help="Only requests about this wearer, with their texts.")] = "",
    overdue: Annotated[bool, typer.Option("--overdue", help="Only requests whose next step is overdue.")] = False,
    basis: Basis = "TAG_16_3_2",
    *,
    after: Annotated[str, typer.Option(help="Only requests that were made after this one.")] = "",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """List requests with their deadlines, at most 100. With a wearer the reading is a row of the ledger."""
    message = cctv_pb2.ListCctvRequestsRequest(
        wearer_id=wearer,
        only_overdue=overdue,
        after_request_id=after,
        grounds=enforcement_grounds(basis) if wearer else None,
    )
    answer = ask_as_probation(folder, lambda clients: clients.cctv.ListCctvRequests, message)
    _print_requests(list(answer.requests))
    if answer.disclosure_id:
        print(f"disclosure {answer.disclosure_id}")


def _print_requests(requests: list[cctv_pb2.CctvRequest]) -> None:
    view = Table("request", "wearer", "ground", "government", "steps", "due")
    for each in requests:
        steps = [
            f"{cctv_pb2.CctvStep.Name(entry.step).removeprefix('CCTV_STEP_').lower()} {rfc3339(entry.at)} {entry.text}".rstrip()
            for entry in each.entries
        ]
        due = f"{rfc3339(each.due_at)}{', OVERDUE' if each.overdue else ''}" if each.HasField("due_at") else "nothing"
        ground = cctv_pb2.CctvGround.Name(each.ground).removeprefix("CCTV_GROUND_").lower()
        view.add_row(each.request_id, each.wearer_id, ground, each.government, "\n".join(steps), due)
    print_table(view, empty="no requests")


cctv_app.command("request", cls=usage.Command)(request_cctv)
cctv_app.command("step", cls=usage.Command)(cctv_step)
cctv_app.command("list", cls=usage.Command)(list_requests)


def device_token(
    device: Annotated[str, typer.Argument(help="Id of the tag or protective device.")],
    keep_older_for_s: Annotated[
        int, typer.Option(min=0, max=MAX_KEEP_OLDER_S, help="How long older tokens stay valid, seconds.")
    ] = 0,
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke all tokens of the device, and issue none.")] = False,
    *,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Issue and print a token with which a device reports by itself. It is shown only once."""
    if revoke and keep_older_for_s:
        raise CommandFailed("--keep-older-for-s and --revoke exclude each other", MISUSED)
    print(uvloop.run(_change_tokens(mesh.load(folder), device, keep_older_for_s, revoke=revoke)))


async def _change_tokens(running: MeshConnection, device_id: str, keep_older_for_s: int, *, revoke: bool) -> str:
    async with mesh.connect(running) as clients:
        tokens = clients.device_tokens
        if revoke:
            revocation = device_token_pb2.RevokeDeviceTokensRequest(device_id=device_id)
            answer = await _as_its_agency(clients, tokens.RevokeDeviceTokens, revocation)
            return f"tokens revoked: {answer.revoked}"
        issue = device_token_pb2.IssueDeviceTokenRequest(device_id=device_id, keep_older_for_s=keep_older_for_s)
        return (await _as_its_agency(clients, tokens.IssueDeviceToken, issue)).token


async def _as_its_agency(
    clients: Clients, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
) -> Response:
    """Makes a call as the agency that owns the device: the Ministry of Justice, or else the police."""
    try:
        return await call(method, request, clients.identity(MOJ_RECORDS))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise
    return await call(method, request, clients.identity(NPA_RECORDS))


def enrol(
    device: Annotated[str, typer.Argument(help="Id of the protective device.")],
    valid_for_s: Annotated[
        int, typer.Option(min=MIN_VALID_S, max=MAX_VALID_S, help="How long the code is valid, seconds.")
    ] = DEFAULT_VALID_S,
    *,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Issue and print a code by which a protected person's phone is enrolled, once. Earlier codes of the device end."""
    running = mesh.load(folder)
    issued = uvloop.run(_issue_code(running, device, valid_for_s))
    until = rfc3339(issued.expires_at)
    print(f"{issued.code}\nvalid until {until}" + (f", at {running.field_url}" if running.field_url else ""))


async def _issue_code(
    running: MeshConnection, device_id: str, valid_for_s: int
) -> enrolment_pb2.IssueEnrolmentCodeResponse:
    async with mesh.connect(running) as clients:
        request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id, valid_for_s=valid_for_s)
        return await call(clients.enrolments.IssueEnrolmentCode, request, clients.identity(NPA_RECORDS))


def ask_as_probation(
    folder: Path, method: Callable[[Clients], grpc.aio.UnaryUnaryMultiCallable[Request, Response]], request: Request
) -> Response:
    """Calls a service of a running mesh as probation's desk. Raises AioRpcError if the service refuses."""

    async def ask_mesh() -> Response:
        async with mesh.connect(mesh.load(folder)) as clients:
            return await call(method(clients), request, clients.identity(PROBATION_DESK))

    return uvloop.run(ask_mesh())


def enforcement_grounds(basis: str) -> disclosure_pb2.Grounds:
    """Grounds of a disclosure to an officer of probation, for enforcement."""
    return disclosure_pb2.Grounds(legal_basis=basis, purpose=disclosure_pb2.PURPOSE_ENFORCEMENT)


def option_timestamp(option: str, value: str) -> Timestamp:
    """Parses the time of an option, whose name is given without dashes. Raises CommandFailed if it isn't an RFC 3339 time."""
    return times.to_timestamp(usage.moment_ms(f"--{option}", value))


def rfc3339(value: Timestamp) -> str:
    """Formats a time as RFC 3339 in UTC."""
    return times.to_rfc3339(times.from_timestamp(value))


def print_table(table: Table, empty: str) -> None:
    """Prints the rows of a table, or a text if it has none."""
    console = for_results()
    console.print(fitted(console, table) if table.row_count else empty)
