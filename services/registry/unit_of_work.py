"""One transaction on the registry's database, with a repository for each capability."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.clock import MeshClock
from services.registry.cases.store import CaseRepository
from services.registry.enrolment.store import EnrolmentRepository
from services.registry.keys.store import KeyRepository
from services.registry.keys.vault import Vault
from services.registry.ledger.store import LedgerRepository
from services.registry.outbox.store import OutboxRepository
from services.registry.reconciliation.store import ReconciliationRepository
from services.registry.records.store import RecordRepository
from services.registry.repository import MetaRepository
from services.registry.retention.store import DestructionRepository
from services.registry.reviews.store import ReviewRepository
from services.registry.routes.store import RouteRepository
from services.registry.traces.store import TraceRepository
from services.registry.working_set import writing
from services.registry.working_set.working_set import WorkingSet

T = TypeVar("T")


class UnitOfWork:
    """The registry's tables as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault, clock: MeshClock) -> None:
        self._connection = connection
        self._vault = vault
        self._clock = clock
        self.meta = MetaRepository(connection)
        self.keys = KeyRepository(connection, vault)
        self.destruction = DestructionRepository(connection, vault)
        self.records = RecordRepository(connection, vault)
        self.reviews = ReviewRepository(connection, vault, self.keys)
        self.reconciliation = ReconciliationRepository(connection, vault)
        self.cases = CaseRepository(connection)
        self.routes = RouteRepository(connection)
        self.enrolments = EnrolmentRepository(connection)
        self.outbox = OutboxRepository(connection)
        self.ledger = LedgerRepository(connection)
        self.traces = TraceRepository(connection)
        self.after_commit: list[Callable[[], None]] = []
        """Callbacks to run after the commit, such as writing a log line."""

    async def change(self, command: Callable[[WorkingSet], T]) -> T:
        """Run a command on the records as a part of this transaction."""

        def run(connection: Connection) -> T:
            working = WorkingSet(connection, self._vault)
            result = command(working)
            writing.write(connection, working, self._clock.now_ms())
            self.after_commit += working.after_commit
            return result

        return await self._connection.run_sync(run)
