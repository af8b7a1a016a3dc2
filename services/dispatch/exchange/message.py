"""What a webhook says, whatever steps there come to be: the step as JSON, or the leg's half of the incident after it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from google.protobuf import json_format

from services.common import ids
from services.dispatch.exchange import cap, eido
from services.dispatch.exchange.receivers import Receiver
from tandem.dispatch.v1 import dispatch_pb2


def delivery_id(leg: str, receiver: str, step: dispatch_pb2.Step) -> str:
    """Id of a message: the same step to the same receiver has the same one, for ever."""
    return ids.hash_id("hook", leg, receiver, step.step_id)


def write(
    leg: str,
    receiver: Receiver,
    sequence: int,
    step: dispatch_pb2.Step,
    before: Sequence[bytes],
    link: str,
) -> tuple[bytes, str]:
    """The body and its content type, in the receiver's form; `before` are the incident's steps until then, serialised.

    `link` is where the offer can be taken, empty where there is none.
    """
    if receiver.form == "step":
        return _step(leg, sequence, step, link), "application/json"
    steps = [*map(dispatch_pb2.Step.FromString, before), step]
    if receiver.form == "cap":
        return cap.message(leg, steps, receiver.name, link), "application/cap+xml"
    return eido.document(leg, steps, link), "application/json"


def _step(leg: str, sequence: int, step: dispatch_pb2.Step, link: str) -> bytes:
    """The fields of tandem.dispatch.v1.Step as JSON."""
    told = {
        "type": "tandem.dispatch.v1.Step",
        "leg": leg,
        "sequence": sequence,
        "step": json_format.MessageToDict(step, preserving_proto_field_name=True),
    }
    if link:
        told["acknowledge_url"] = link
    return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
