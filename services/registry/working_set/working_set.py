"""The rows that the commands of one transaction read and change, in memory.

A command reads through the working set, which asks the database once for each row, and changes rows in memory only. The changes of
all commands are written together at the end. So the commands of a batch share their statements, and a later command sees the
changes of an earlier one exactly as if each had its own transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from services.registry.keys.vault import Vault
from services.registry.outbox.store import OutboxMessage
from services.registry.records.kinds import ORDERS, WEARERS
from services.registry.records.prepared import PreparedRecord
from services.registry.reviews.domain import MatchEvent, ReviewComparison
from services.registry.working_set.cases import CaseRows, ReviewRows
from services.registry.working_set.devices import RouteRows, TokenRows
from services.registry.working_set.match_keys import MatchKeyRows
from services.registry.working_set.records import RecordRows
from services.registry.working_set.tag_records import TagRecordRows


class WorkingSet:
    """The registry's tables as the commands of one transaction see them."""

    def __init__(self, connection: Connection, vault: Vault) -> None:
        self.vault = vault
        self.records = RecordRows(connection, vault)
        self.match_keys = MatchKeyRows(connection)
        self.cases = CaseRows(connection, self.records)
        self.reviews = ReviewRows(connection)
        self.tag_records = TagRecordRows(connection)
        self.records.dependents[WEARERS].append((self.tag_records.rows, "wearer_id"))
        for kind, name in ((ORDERS, "order_id"), (WEARERS, "wearer_id")):
            self.records.dependents[kind] += [(self.cases.rows, name), (self.reviews.rows, name)]
        self.routes = RouteRows(connection)
        self.tokens = TokenRows(connection)
        self.events: list[MatchEvent] = []
        """Events for the stream of matches, in order."""
        self.comparisons: list[ReviewComparison] = []
        """Comparisons for the histories of reviewed pairs, in order."""
        self.messages: list[OutboxMessage] = []
        """Messages for the outbox, in order."""
        self.after_commit: list[Callable[[], None]] = []
        """Callbacks to run after the commit, such as writing a log line."""

    def put(self, prepared: PreparedRecord[Any]) -> None:
        """Put a record with its digest for reconciliation and its keys for matching."""
        self.records.put(prepared)
        if prepared.kind.side is not None:
            self.match_keys.put(prepared.kind.side, prepared)
