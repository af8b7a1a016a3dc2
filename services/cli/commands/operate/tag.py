"""`tandem tag`: record what officers decide about the wearing of tags, and list it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from services.cli import usage
from services.cli.probation import Basis, Folder, ask, grounds, moment, rfc3339, show
from services.cli.stack.mesh import DEFAULT_FOLDER
from tandem.registry.v1 import tag_record_pb2

app = usage.group("Refusals, good cause and authorised removals of tags.")

RecordId = Annotated[str, typer.Argument(help="The Ministry's id of the record.")]
Reason = Annotated[str, typer.Option(help="Why, at most 500 characters.")]


@app.command(cls=usage.Command)
def refused(
    record: RecordId,
    wearer: Annotated[str, typer.Option(help="Id of the wearer.")],
    *,
    order: Annotated[str, typer.Option(help="Id of the order of item 3-2.")],
    at: Annotated[str, typer.Option(help="When the respondent refused, RFC 3339.")],
    reason: Reason,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Record that a respondent refused to be fitted with a tag. The police are notified at once."""
    request = tag_record_pb2.RecordRefusalRequest(
        record_id=record, wearer_id=wearer, order_id=order, refused_at=moment("at", at), reason=reason
    )
    answer = ask(folder, lambda clients: clients.tag_records.RecordRefusal, request)
    print(_outcome(answer.outcome))


def good_cause(
    record: RecordId,
    wearer: Annotated[str, typer.Option(help="Id of the wearer.")],
    *,
    order: Annotated[str, typer.Option(help="Id of the order of item 3-2.")],
    since: Annotated[str, typer.Option("--from", help="Since when the cause exists, RFC 3339; may be past.")],
    until: Annotated[str, typer.Option(help="Until when the cause holds, RFC 3339, at most 30 days ahead.")],
    reason: Reason,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Record good cause for a missing tag. The notice to the police ends, or is withheld, until the cause ends."""
    request = tag_record_pb2.RecordGoodCauseRequest(
        record_id=record, wearer_id=wearer, order_id=order, until=moment("until", until), reason=reason
    )
    getattr(request, "from").CopyFrom(moment("from", since))
    answer = ask(folder, lambda clients: clients.tag_records.RecordGoodCause, request)
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
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Record an authorised removal of a tag. A strap that is still open when the removal ends raises an alarm."""
    request = tag_record_pb2.AllowRemovalRequest(
        record_id=record,
        device_id=device,
        until=moment("until", until),
        reason=reason,
        allowed_by=allowed_by,
        afterwards=afterwards,
    )
    if since:
        getattr(request, "from").CopyFrom(moment("from", since))
    answer = ask(folder, lambda clients: clients.tag_records.AllowRemoval, request)
    print(_outcome(answer.outcome))


def end_removal(
    record: RecordId,
    at: Annotated[str, typer.Option(help="The new end, RFC 3339.")],
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """End an authorised removal early, or cancel it before it begins."""
    request = tag_record_pb2.EndRemovalRequest(record_id=record, ended_at=moment("at", at))
    answer = ask(folder, lambda clients: clients.tag_records.EndRemoval, request)
    print(_outcome(answer.outcome))


def list_records(
    wearer: Annotated[str, typer.Argument(help="Id of the wearer.")],
    basis: Basis = "TAG_31_8_2",
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """List all records about a wearer's tags. The ledger gets a row."""
    request = tag_record_pb2.ListTagRecordsRequest(wearer_id=wearer, grounds=grounds(basis))
    answer = ask(folder, lambda clients: clients.tag_records.ListTagRecords, request)
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
    show(view, empty="no records")
    print(f"disclosure {answer.disclosure_id}")


def _outcome(outcome: tag_record_pb2.TagRecordOutcome.ValueType) -> str:
    return tag_record_pb2.TagRecordOutcome.Name(outcome).removeprefix("TAG_RECORD_OUTCOME_").lower()


app.command("good-cause", cls=usage.Command)(good_cause)
app.command("allow-removal", cls=usage.Command)(allow_removal)
app.command("end-removal", cls=usage.Command)(end_removal)
app.command("list", cls=usage.Command)(list_records)
