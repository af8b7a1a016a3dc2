"""What a webhook says: the step as JSON, whatever steps there come to be."""

from __future__ import annotations

import json

from google.protobuf import json_format

from services.common import ids
from tandem.dispatch.v1 import dispatch_pb2


def delivery_id(leg: str, receiver: str, step: dispatch_pb2.Step) -> str:
    """Id of a message: the same step to the same receiver has the same one, for ever."""
    return ids.hash_id("hook", leg, receiver, step.step_id)


def body(leg: str, sequence: int, step: dispatch_pb2.Step, link: str) -> bytes:
    """JSON with the fields of tandem.dispatch.v1.Step; `link` is where the offer can be taken, where there is one."""
    told = {
        "type": "tandem.dispatch.v1.Step",
        "leg": leg,
        "sequence": sequence,
        "step": json_format.MessageToDict(step, preserving_proto_field_name=True),
    }
    if link:
        told["acknowledge_url"] = link
    return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
