"""`tandem feasibility`: what a proposed order would have caused on the past days of its wearer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli.explain import disclosures as ledger
from services.cli.failure import MISUSED, CommandFailed
from services.cli.feasibility import inputs, stored, study, tables
from services.cli.simulate.files import FileError, Scenario
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import for_results
from services.common import fields
from services.common.privacy.grounds import Purpose
from services.common.rpc.errors import InvalidField
from services.geofence.domain.entries import Case
from tandem.registry.v1 import registry_pb2

ACCURACY_M = 10.0


def feasibility(
    order: Annotated[
        str,
        typer.Option(help="Scenario file with the proposed order (a name with .json), or the id of a stored order."),
    ],
    history: Annotated[
        Path, typer.Option(help="Past days of the wearer: a track (.gpx, .csv), or reports of all devices (.ndjson).")
    ],
    device: Annotated[str, typer.Option(help="Tag of a .gpx or .csv track; the order's first tag if left out.")] = "",
    *,
    accuracy: Annotated[
        float, typer.Option(metavar="METRES", help="Accuracy of positions of a track without one.")
    ] = ACCURACY_M,
    wearer: Annotated[str, typer.Option(help="Stored order: the wearer, if it restrains several.")] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Stored order: folder of the mesh.")] = DEFAULT_FOLDER,
    legal_basis: Annotated[str, typer.Option(metavar="CODE", help="Stored order: code of the legal basis.")] = "",
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Stored order: name of the reader.")] = "",
    purpose: Annotated[
        Purpose, typer.Option(help="Stored order: purpose of the disclosure.", case_sensitive=False)
    ] = Purpose.AUDIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fold past days of a wearer under a proposed order: dispatches and notices to expect, and what would spare most of them."""
    try:
        if _is_file(order):
            scenario, case = inputs.load_order(Path(order))
        else:
            case = _stored(mesh.load(folder), order, wearer, to_name=reviewer, legal_basis=legal_basis, purpose=purpose)
            scenario = _devices_of(case)
        past = inputs.load_history(history, scenario, case, device_id=device, accuracy_m=accuracy)
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None
    case, unknown = inputs.without_unknown_devices(case, past)
    console = for_results(stderr=as_json)
    with console.status("folding") as status:
        known = study.study(case, past, progress=lambda done, of: status.update(f"fold {done} of {of}"))
    if as_json:
        print(json.dumps({**tables.to_json(known), "devices_without_history": unknown}))
        return
    console.print(*tables.tables(known), sep="\n")
    if unknown:
        console.print(f"the history has no report of {', '.join(unknown)}: only what the places cause is counted")


def _is_file(order: str) -> bool:
    return order.endswith(".json") or Path(order).exists()


def _stored(
    running: MeshConnection, order_id: str, wearer_id: str, *, to_name: str, legal_basis: str, purpose: Purpose
) -> Case:
    try:
        fields.required_id("--order", order_id)
    except InvalidField as error:
        raise CommandFailed(f"{error}, nor is there such a file (example: proposal.json)", MISUSED) from None
    to = ledger.reader(
        to_name, legal_basis, purpose, now_ms=running.clock.now_ms(), needed_by="--order with a stored order"
    )
    case = uvloop.run(stored.read(running, order_id, wearer_id, to=to))
    stored.require_response(case)
    return case


def _devices_of(case: Case) -> Scenario:
    """The records of a case that reports are checked against."""
    persons = [target for target in case.targets if target.is_person]
    return Scenario(
        tags=[registry_pb2.Tag(device_id=id_, wearer_id=case.wearer_id) for id_ in case.tag_device_ids],
        devices=[
            registry_pb2.Device(device_id=id_, person_id=target.target_id)
            for target in persons
            for id_ in target.device_ids
        ],
    )
