"""The registry's services on one database, without gRPC, streams and relay."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.rpc.errors import NotFound
from services.common.storage.db import Database
from services.registry import startup
from services.registry.bulk.service import BulkService
from services.registry.cases.renewal import Renewal
from services.registry.cases.service import CaseService
from services.registry.cctv.service import CctvRequests
from services.registry.device_tokens.service import DeviceTokens
from services.registry.disclosure.service import Disclosures
from services.registry.exercises.service import Exercises
from services.registry.keys.vault import Vault
from services.registry.ledger.signing import Signer
from services.registry.metrics import RegistryMetrics
from services.registry.presence_units.service import PresenceUnits
from services.registry.reconciliation.service import ReconciliationService
from services.registry.records.kinds import R, RecordType
from services.registry.records.ministry import MinistryService
from services.registry.records.police import PoliceService
from services.registry.relay.service import Relay
from services.registry.retention.service import KeyRetention
from services.registry.reviews.service import ReviewService
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork
from services.registry.wearing.service import WearingService


async def read_record(view: UnitOfWork, kind: RecordType[R], record_id: str) -> R:
    """A stored record. Raises NotFound if it isn't stored or was destroyed."""
    found = await view.records.opened(kind, [record_id])
    if record_id not in found:
        raise NotFound("no such record")
    return found[record_id]


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
        await startup.prepare(self.transactions, self.cases, self._vault, log_created_at=log_created_at)
