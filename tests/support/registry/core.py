"""The registry's services on one database, without gRPC, streams and relay."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.storage.db import Database
from services.registry.__main__ import prepare_database
from services.registry.agencies.bulk import BulkService
from services.registry.agencies.exercises import Exercises
from services.registry.agencies.ministry import MinistryService
from services.registry.agencies.police import PoliceService
from services.registry.agencies.presence_units import PresenceUnits
from services.registry.cases.service import CaseService, Renewal
from services.registry.cctv.service import CctvRequests
from services.registry.device_tokens import DeviceTokens
from services.registry.disclosure.service import Disclosures
from services.registry.keys import Vault
from services.registry.ledger import Signer
from services.registry.metrics import RegistryMetrics
from services.registry.reconciliation import ReconciliationService
from services.registry.records import store
from services.registry.records.kinds import R, RecordType
from services.registry.relay import Relay
from services.registry.retention import KeyRetention
from services.registry.reviews.service import ReviewService
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork
from services.registry.wearing import WearingService


async def read_record(view: UnitOfWork, kind: RecordType[R], record_id: str) -> R:
    """A stored record. Raises NotFound if it isn't stored or was destroyed."""
    return await view.connection.run_sync(store.read_record, view.vault, kind, record_id=record_id)


class RegistryCore:
    """The services as `__main__` wires them."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        clock: MeshClock,
        *,
        partitions: int = 1,
        warning_key: X25519PublicKey | None = None,
    ) -> None:
        self._vault = vault
        self._clock = clock
        self.database = database
        self.metrics = RegistryMetrics(CollectorRegistry())
        self.transactions = Transactions(database, vault, clock)
        self.cases = CaseService(clock, vault, partitions, warning_key=warning_key)
        self.ministry = MinistryService(self.transactions, self.cases)
        self.police = PoliceService(self.transactions, self.cases, clock)
        self.units = PresenceUnits(self.transactions, self.cases)
        self.bulk = BulkService(self.transactions, self.ministry, self.police, units=self.units)
        self.reviews = ReviewService(self.transactions, self.cases, clock, gauges=self.metrics.reviews)
        self.reconciliation = ReconciliationService(self.transactions, clock, self.metrics.unproven_s)
        self.renewal = Renewal(self.transactions, self.cases, clock)
        self.retention = KeyRetention(self.transactions, self.cases, vault, clock=clock)
        self.device_tokens = DeviceTokens(self.transactions, self.cases, clock)
        self.exercises = Exercises(self.transactions, self.ministry, self.police, clock=clock)
        self.disclosures = Disclosures(self.transactions, clock, Signer(os.urandom(32)))
        self.wearing = WearingService(self.transactions, self.cases, self.disclosures, clock=clock)
        self.cctv = CctvRequests(self.transactions, self.disclosures, clock=clock)

    def relay(self, bus: Bus) -> Relay:
        """A relay of the outbox to a server."""
        return Relay(self.transactions, self.renewal, bus, clock=self._clock, age_s=self.metrics.outbox_age_s)

    async def prepare(self, log_created_at: str = "log 1") -> None:
        """Unlock the database and complete its records."""
        await prepare_database(self.transactions, self._vault, log_created_at=log_created_at)
