"""Refusals of forms, answers and reads, in the words of the page: which field is wrong and why, or which service doesn't answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from functools import partial
from typing import cast

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.console.domain.desk import BadField, SentUnit
from services.console.pages.guard import http_status
from services.console.pages.texts import TEXTS, Texts


@dataclass(frozen=True, slots=True)
class PageRefusal:
    """Refusal of a form, an answer or a read, as its page shows it."""

    status: int
    """HTTP status."""
    key: str
    """Key of the reason in the texts."""
    field: str = ""
    """Wrong field of the form; empty if none is wrong."""
    example: str = ""
    """Example of a valid value of the field; empty if there is none."""
    detail: str = ""
    """Error text of the service, if the texts have no words for it; or the name of the user who acknowledged first."""
    act: str = ""
    """Answer that was refused; empty for a form or a read."""
    values: Mapping[str, str] = field_of(default_factory=dict)
    """Values in the text of the reason, by name."""
    form: Mapping[str, str] = field_of(default_factory=dict)
    """Form as it was sent, so that the user needn't type it again."""
    before: str = ""
    """Key of the text that stands before the reason; empty for none."""
    names: str = "input"
    """Beginning of the key of a field's name in the texts; the field follows."""

    def words(self, texts: Texts) -> str:
        """Returns the refusal as one line of text: the field, what is wrong, and an example."""
        name = texts(f"{self.names}_{self.field}") if f"{self.names}_{self.field}" in TEXTS else ""
        reason = texts(self.key).format(**self.values) if self.values else texts(self.key)
        before = texts(self.before) if self.before else ""
        example = f" ({texts('for_example')} {self.example})" if self.example else ""
        return ": ".join(part for part in (before, name, reason, self.detail) if part) + example


answer_refusal = partial(PageRefusal, before="not_answered", names="field")
"""Makes the refusal of an answer of a desk."""


def of_field(error: BadField, act: str, form: Mapping[str, str]) -> PageRefusal:
    """Makes the refusal of a form with a wrong field."""
    own = f"why_{error.field}_{error.why}"
    return answer_refusal(400, own if own in TEXTS else f"why_{error.why}", error.field, act=act, form=form)


def of_leg(error: grpc.aio.AioRpcError, act: str, form: Mapping[str, str]) -> PageRefusal:
    """Makes the refusal for an error of the leg, or for a leg that is unavailable."""
    status = http_status(error.code())
    code, wrong = details(error)
    key = f"answer_{code}" if f"answer_{code}" in TEXTS else f"answer_{status}"
    own_words = key == f"answer_{status}" and status < 500
    detail = (error.details() or "") if own_words or key not in TEXTS else ""
    return answer_refusal(
        status=status, key=key if key in TEXTS else "answer_502", field=wrong, detail=detail, act=act, form=form
    )


def of_sent(refusal: PageRefusal, sent: SentUnit, at: str) -> PageRefusal:
    """Makes the refusal say which unit somebody sent meanwhile. `at` is when, in words."""
    key = f"answer_SENT_{sent.how}"
    return replace(refusal, key=key, detail="", values={"unit": sent.unit, "by": sent.by, "at": at})


def of_service(
    error: grpc.aio.AioRpcError, prefix: str, form: Mapping[str, str], *, examples: Mapping[str, str] | None = None
) -> PageRefusal:
    """Makes the refusal for an error of a service, or for a service that is unavailable.

    The key is `prefix` with the service's code, the wrong field or the HTTP status, whichever the texts have first.
    """
    status = http_status(error.code())
    code, path = reason_and_path(error)
    field = path.rpartition(".")[2].partition("[")[0]
    candidates = (f"{prefix}_{code}", f"{prefix}_wrong_{field}", f"{prefix}_{status}", f"refused_{status}")
    key = next((key for key in candidates if key in TEXTS), "refused_502")
    known = key == candidates[1] or not field
    return PageRefusal(
        status=status,
        key=key,
        field=field,
        example=(examples or {}).get(field, ""),
        detail="" if known else (error.details() or ""),
        form=form,
    )


def of_registry(error: grpc.aio.AioRpcError, act: str, form: Mapping[str, str]) -> PageRefusal:
    """Makes the refusal for an error of the registry, or for a registry that is unavailable."""
    status = http_status(error.code())
    code, wrong = details(error)
    candidates = (f"review_{code}", f"review_wrong_{wrong}", f"review_{status}")
    key = next((key for key in candidates if key in TEXTS), "review_502")
    before = "review_refused" if act else "review_unread"
    return PageRefusal(status=status, key=key, act=act, form=form, before=before)


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
    "unit_id": "unit",
    "unit_name": "unit_name",
}
"""Form field of each request field."""
