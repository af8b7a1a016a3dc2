"""`tandem cctv`: the log of requests to local governments for CCTV."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from services.cli import usage
from services.cli.failure import MISUSED, CommandFailed
from services.cli.probation import Basis, Folder, ask, grounds, moment, rfc3339, show
from services.cli.stack.mesh import DEFAULT_FOLDER
from tandem.registry.v1 import cctv_pb2

app = usage.group("Requests to local governments for CCTV (Tag Act 16-3).")
_GROUNDS = {"9-2": cctv_pb2.CCTV_GROUND_CONDITION_9_2, "14-1": cctv_pb2.CCTV_GROUND_DUTY_14_1}
_STEPS = {
    "provided": cctv_pb2.CCTV_STEP_PROVIDED,
    "declined": cctv_pb2.CCTV_STEP_DECLINED,
    "viewing-ended": cctv_pb2.CCTV_STEP_VIEWING_ENDED,
    "wearer-notified": cctv_pb2.CCTV_STEP_WEARER_NOTIFIED,
}

RequestId = Annotated[str, typer.Argument(help="The Ministry's id of the request.")]


@app.command(cls=usage.Command)
def request(
    request_id: RequestId,
    wearer: Annotated[str, typer.Option(help="Id of the wearer.")],
    ground: Annotated[str, typer.Option(help="The duty that was breached: 9-2 or 14-1.")],
    *,
    government: Annotated[str, typer.Option(help="The local government.")],
    details: Annotated[str, typer.Option(help="Where, when, and why it is urgent, at most 1,000 characters.")],
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Enter a request. It is a row of the ledger, too."""
    if ground not in _GROUNDS:
        raise CommandFailed(f'--ground: "{ground}" must be one of {", ".join(_GROUNDS)}', MISUSED)
    message = cctv_pb2.RequestCctvRequest(
        request_id=request_id, wearer_id=wearer, ground=_GROUNDS[ground], government=government, details=details
    )
    answer = ask(folder, lambda clients: clients.cctv.RequestCctv, message)
    _print([answer.request])
    print(f"disclosure {answer.disclosure_id}")


@app.command(cls=usage.Command)
def step(
    request_id: RequestId,
    name: Annotated[str, typer.Argument(metavar="STEP", help=", ".join(_STEPS))],
    at: Annotated[str, typer.Option(help="When it happened, RFC 3339.")],
    *,
    note: Annotated[str, typer.Option(help="How, at most 500 characters.")] = "",
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Enter the next step of a request."""
    if name not in _STEPS:
        raise CommandFailed(f'"{name}" is no step; steps: {", ".join(_STEPS)}', MISUSED)
    message = cctv_pb2.RecordCctvStepRequest(request_id=request_id, step=_STEPS[name], at=moment("at", at), note=note)
    _print([ask(folder, lambda clients: clients.cctv.RecordCctvStep, message).request])


def list_requests(
    wearer: Annotated[str, typer.Option(help="Only requests about this wearer, with their texts.")] = "",
    overdue: Annotated[bool, typer.Option("--overdue", help="Only requests whose next step is overdue.")] = False,
    basis: Basis = "TAG_16_3_2",
    *,
    after: Annotated[str, typer.Option(help="Only requests that were made after this one.")] = "",
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """List requests with their deadlines, at most 100. With a wearer the reading is a row of the ledger."""
    message = cctv_pb2.ListCctvRequestsRequest(
        wearer_id=wearer,
        only_overdue=overdue,
        after_request_id=after,
        grounds=grounds(basis) if wearer else None,
    )
    answer = ask(folder, lambda clients: clients.cctv.ListCctvRequests, message)
    _print(list(answer.requests))
    if answer.disclosure_id:
        print(f"disclosure {answer.disclosure_id}")


def _print(requests: list[cctv_pb2.CctvRequest]) -> None:
    view = Table("request", "wearer", "ground", "government", "steps", "due")
    for each in requests:
        steps = [
            f"{cctv_pb2.CctvStep.Name(entry.step).removeprefix('CCTV_STEP_').lower()} {rfc3339(entry.at)} {entry.text}".rstrip()
            for entry in each.entries
        ]
        due = f"{rfc3339(each.due_at)}{', OVERDUE' if each.overdue else ''}" if each.HasField("due_at") else "nothing"
        ground = cctv_pb2.CctvGround.Name(each.ground).removeprefix("CCTV_GROUND_").lower()
        view.add_row(each.request_id, each.wearer_id, ground, each.government, "\n".join(steps), due)
    show(view, empty="no requests")


app.command("list", cls=usage.Command)(list_requests)
