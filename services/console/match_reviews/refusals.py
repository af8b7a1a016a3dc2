"""Reasons why a match review wasn't shown or decided, in the words of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc.aio

from services.console.guard import http_status
from services.console.pages.texts import TEXTS, Texts
from services.console.review.refusals import details


@dataclass(frozen=True, slots=True)
class ReviewRefusal:
    """Refusal of a read or an answer, as the page shows it."""

    status: int
    """HTTP status."""
    key: str
    """Key of the reason in the texts."""
    act: str = ""
    """Answer that was refused; empty for a read."""
    form: Mapping[str, str] = field(default_factory=dict)
    """Form as it was sent, so that the reason needn't be typed once more."""

    def words(self, texts: Texts) -> str:
        """Returns the refusal as one line of text."""
        return f"{texts('review_refused' if self.act else 'review_unread')}: {texts(self.key)}"


def of_registry(error: grpc.aio.AioRpcError, act: str, form: Mapping[str, str]) -> ReviewRefusal:
    """Makes the refusal for an error of the registry, or for a registry that is unavailable."""
    status = http_status(error.code())
    code, wrong = details(error)
    candidates = (f"review_{code}", f"review_wrong_{wrong}", f"review_{status}")
    key = next((key for key in candidates if key in TEXTS), "review_502")
    return ReviewRefusal(status=status, key=key, act=act, form=form)
