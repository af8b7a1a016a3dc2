"""Refusals of databases in the log of this process, and the end of each."""

from __future__ import annotations

from services.common.errors import Unavailable
from services.common.observability.outages import Outages

QUIET_S = 5.0
"""Time without a refusal after which an answer ends an outage, seconds: on a full disk a database still answers what stores nothing."""
_OUTAGES = Outages("database_refused", "database_answers")


def refused(database: str, reason: str, message: str, *, retry_after_s: float = 5.0) -> Unavailable:
    """Logs that a database refused, and returns the error with `message` for the caller. `database` is an SQLite file, or the name of
    a database in PostgreSQL."""
    _OUTAGES.failed({"database": database}, reason)
    return Unavailable(message, retry_after_s=retry_after_s)


def answered(database: str) -> None:
    """Notes that a database answered."""
    _OUTAGES.succeeded({"database": database}, QUIET_S)
