"""Refusals of forms by a service, in the words of the page: which field is wrong and why, or which service doesn't answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as field_of

import grpc.aio

from services.console.guard import http_status
from services.console.pages.texts import TEXTS, Texts
from services.console.review.refusals import reason_and_path


@dataclass(frozen=True, slots=True)
class FormRefusal:
    """Refusal of a form, as its page shows it."""

    status: int
    """HTTP status."""
    key: str
    """Key of the reason in the texts."""
    field: str = ""
    """Wrong field of the form; empty if none is wrong. Its name has the key `input_` and the field."""
    example: str = ""
    """Example of a valid value of the field; empty if there is none."""
    detail: str = ""
    """Error text of the service, if the texts have no words for it."""
    form: Mapping[str, str] = field_of(default_factory=dict)
    """Form as it was sent, so that the user needn't type it again."""

    def words(self, texts: Texts) -> str:
        """Returns the refusal as one line of text: the field, what is wrong, and an example."""
        name = texts(f"input_{self.field}") if f"input_{self.field}" in TEXTS else ""
        example = f" ({texts('for_example')} {self.example})" if self.example else ""
        return ": ".join(part for part in (name, texts(self.key), self.detail) if part) + example


def of_service(
    error: grpc.aio.AioRpcError, prefix: str, form: Mapping[str, str], *, examples: Mapping[str, str] | None = None
) -> FormRefusal:
    """Makes the refusal for an error of a service, or for a service that is unavailable.

    The key is `prefix` with the service's code, the wrong field or the HTTP status, whichever the texts have first.
    """
    status = http_status(error.code())
    code, path = reason_and_path(error)
    field = path.rpartition(".")[2].partition("[")[0]
    candidates = (f"{prefix}_{code}", f"{prefix}_wrong_{field}", f"{prefix}_{status}", f"refused_{status}")
    key = next((key for key in candidates if key in TEXTS), "refused_502")
    known = key == candidates[1] or not field
    return FormRefusal(
        status=status,
        key=key,
        field=field,
        example=(examples or {}).get(field, ""),
        detail="" if known else (error.details() or ""),
        form=form,
    )
