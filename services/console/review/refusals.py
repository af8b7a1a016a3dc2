"""Why an answer of a desk wasn't taken: the keys of its words in both languages, the field, and the HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from typing import cast

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.console.domain.desk import BadField
from services.console.guard import http_status
from services.console.pages.texts import TEXTS, Texts


@dataclass(frozen=True, slots=True)
class AnswerRefusal:
    """What the page says of it."""

    status: int
    """Of HTTP."""
    key: str
    """Of its words in the texts."""
    field: str = ""
    """The field of the form that is wrong; empty where none is."""
    said: str = ""
    """The leg's own words, where the texts have none."""
    act: str = ""
    form: Mapping[str, str] = field_of(default_factory=dict)
    """What was sent, so that nobody has to write it again."""

    def words(self, texts: Texts) -> str:
        """All of it in one line."""
        parts = [texts("not_answered"), texts(f"field_{self.field}") if self.field else "", texts(self.key), self.said]
        return ": ".join(part for part in parts if part)


def of_field(error: BadField, act: str, form: Mapping[str, str]) -> AnswerRefusal:
    """Of a form that isn't such as it must be."""
    return AnswerRefusal(400, f"why_{error.why}", error.field, act=act, form=form)


def of_leg(error: grpc.aio.AioRpcError, act: str, form: Mapping[str, str]) -> AnswerRefusal:
    """Of what the leg refused, or of a leg that is away."""
    status = http_status(error.code())
    code, wrong = _details(error)
    key = f"answer_{code}" if f"answer_{code}" in TEXTS else f"answer_{status}"
    own_words = key == f"answer_{status}" and status < 500
    said = (error.details() or "") if own_words or key not in TEXTS else ""
    return AnswerRefusal(status, key if key in TEXTS else "answer_502", wrong, said, act, form)


def _details(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """The code of a status and the field that it names; empty where it has none."""
    status = rpc_status.from_call(cast(grpc.Call, error))  # an AioRpcError has all that is looked at
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return info.reason, ""
        if detail.Unpack(wrong) and wrong.field_violations:
            return "", _FIELDS.get(wrong.field_violations[0].field, "")
    return "", ""


_FIELDS = {
    "assignment_id": "assignment",
    "offer_number": "offer",
    "seen_state": "seen",
    "state": "state",
    "reason": "reason",
    "cause": "cause",
    "note": "note",
}
"""Fields of the requests, as the forms call them."""
