"""Short times for the tests of warnings."""

from __future__ import annotations

import pytest

from services.common.retrying import Backoff
from services.dispatch.warning import consumer, domain, sender


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets short times: a receipt is awaited for 2 s, and a message is read in 1 s."""
    monkeypatch.setattr(consumer, "RECEIPT_WITHIN_MS", 2_000)
    monkeypatch.setattr(domain, "READ_MS", 1_000)
    monkeypatch.setattr(sender, "RETRY", Backoff(0.1, 10.0))
