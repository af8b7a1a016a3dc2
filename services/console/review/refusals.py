"""Reasons why an answer of a desk was refused: the key of the text, the field, and the HTTP status."""

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
    """Refusal of an answer, as the page shows it."""

    status: int
    """HTTP status."""
    key: str
    """Key of the reason in the texts."""
    field: str = ""
    """Wrong field of the form; empty if none is wrong."""
    detail: str = ""
    """Error text of the leg, if the console's texts have none; or the name of the user who acknowledged first."""
    act: str = ""
    form: Mapping[str, str] = field_of(default_factory=dict)
    """Form as it was sent, so that the user needn't type it again."""

    def words(self, texts: Texts) -> str:
        """Returns the refusal as one line of text."""
        field_name = texts(f"field_{self.field}") if self.field else ""
        parts = [texts("not_answered"), field_name, texts(self.key), self.detail]
        return ": ".join(part for part in parts if part)


def of_field(error: BadField, act: str, form: Mapping[str, str]) -> AnswerRefusal:
    """Makes the refusal of a form with a wrong field."""
    return AnswerRefusal(400, f"why_{error.why}", error.field, act=act, form=form)


def of_leg(error: grpc.aio.AioRpcError, act: str, form: Mapping[str, str]) -> AnswerRefusal:
    """Makes the refusal for an error of the leg, or for a leg that is unavailable."""
    status = http_status(error.code())
    code, wrong = details(error)
    key = f"answer_{code}" if f"answer_{code}" in TEXTS else f"answer_{status}"
    own_words = key == f"answer_{status}" and status < 500
    detail = (error.details() or "") if own_words or key not in TEXTS else ""
    return AnswerRefusal(
        status=status, key=key if key in TEXTS else "answer_502", field=wrong, detail=detail, act=act, form=form
    )


def details(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Returns the reason code of an error, and the form's name of the wrong field; each is empty if the error has none."""
    code, path = reason_and_path(error)
    return code, _FIELDS.get(path, "")


def reason_and_path(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Returns the reason code of an error, and the path of the wrong field in the request; each is empty if the error has none."""
    status = rpc_status.from_call(cast(grpc.Call, error))  # an AioRpcError has all attributes that from_call reads
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return info.reason, ""
        if detail.Unpack(wrong) and wrong.field_violations:
            return "", wrong.field_violations[0].field
    return "", ""


_FIELDS = {
    "assignment_id": "assignment",
    "offer_number": "offer",
    "seen_state": "seen",
    "state": "state",
    "reason": "reason",
    "cause": "cause",
    "note": "note",
    "legal_basis": "legal_basis",
    "grounds.legal_basis": "legal_basis",
    "note_key": "key",
    "kind": "kind",
    "result": "result",
    "text": "text",
}
"""Form field of each request field."""
