"""Writes the body of a webhook: either one step as JSON, or the leg's half of the incident as it is after that step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import assert_never

from google.protobuf import json_format

from services.common import ids
from services.dispatch.exchange import cap, eido
from services.dispatch.exchange.receivers import BodyForm, Receiver
from tandem.dispatch.v1 import dispatch_pb2


def delivery_id(leg: str, receiver: str, step: dispatch_pb2.Step) -> str:
    """Returns the id of a webhook message. The same step to the same receiver always has the same id."""
    return ids.hash_id("hook", leg, receiver, step.step_id)


def write(
    leg: str,
    receiver: Receiver,
    sequence: int,
    *,
    step: dispatch_pb2.Step,
    before: Sequence[bytes],
    link: str,
) -> tuple[bytes, str]:
    """Returns the body in the receiver's form, and the content type. `before` has the serialised earlier steps of the incident.

    `link` is the URL that accepts the offer; empty if there is none.
    """
    steps = [*map(dispatch_pb2.Step.FromString, before), step]
    match receiver.form:
        case BodyForm.STEP:
            return _step(leg, sequence, step, link=link), "application/json"
        case BodyForm.CAP:
            return cap.message(leg, steps, receiver.name, link=link), "application/cap+xml"
        case BodyForm.EIDO:
            return eido.document(leg, steps, link), "application/json"
        case _:
            assert_never(receiver.form)


def _step(leg: str, sequence: int, step: dispatch_pb2.Step, *, link: str) -> bytes:
    """Encodes the fields of tandem.dispatch.v1.Step as JSON."""
    content = {
        "type": "tandem.dispatch.v1.Step",
        "leg": leg,
        "sequence": sequence,
        "step": json_format.MessageToDict(step, preserving_proto_field_name=True),
    }
    if link:
        content["acknowledge_url"] = link
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
