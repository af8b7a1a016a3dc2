"""Joint cases and device routes that follow from the records: gather, plan and apply them in the transaction of a command."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, assert_never

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.privacy import sealing
from services.registry.cases import surroundings, translate
from services.registry.cases.domain import MatchPair, PlanTerms, decide
from services.registry.cases.effects import CaseMessage, Effects
from services.registry.domain import Contact, RoutedDevice
from services.registry.keys.vault import Vault
from services.registry.outbox.store import OutboxMessage, check_size
from services.registry.records.kinds import Record
from services.registry.records.prepared import PreparedRecord
from services.registry.routes.domain import tag_partitions
from services.registry.working_set.working_set import WorkingSet
from tandem.common.v1 import log_pb2

DAY_MS = 86_400_000


class CaseService:
    """Plans joint cases and routes inside the transaction that changes a record."""

    def __init__(
        self, clock: MeshClock, vault: Vault, partitions: int, *, warning_key: X25519PublicKey | None = None
    ) -> None:
        self._clock = clock
        self._vault = vault
        self._partitions = partitions
        self._warning_key = warning_key

    @property
    def seals_contacts(self) -> bool:
        """Whether the registry has the warning leg's public key."""
        return self._warning_key is not None

    def terms(self) -> PlanTerms:
        """Inputs of a plan that begins now."""
        return PlanTerms(self._clock.now_ms(), self._partitions, lambda text: self._vault.digest(text.encode()))

    def subject(self, wearer_id: str) -> str:
        """Subject of a wearer's cases in the log."""
        (partition,) = tag_partitions(wearer_id, self._partitions)
        return flow.log_subject(partition, "case")

    # ── gather and plan ──────────────────────────────────────────────────────────────────────────────────────────────

    def match(
        self,
        working: WorkingSet,
        pairs: Sequence[MatchPair],
        *,
        put: Record,
        also_persons: Iterable[str] = (),
        also_wearers: Collection[str] = (),
    ) -> Effects:
        """Effects of comparing pairs. The arguments are those of `surroundings.around`."""
        terms = self.terms()
        decided = [decide(pair, terms) for pair in pairs]
        touched = [result.pair for result in decided if result.touches_case]
        found = surroundings.around(
            working,
            touched,
            now_ms=terms.now_ms,
            put=put,
            also_persons=also_persons,
            also_wearers=also_wearers,
            with_contacts=self.seals_contacts,
        )
        effects = Effects(terms, found, touched)
        for result in decided:
            effects.settle(result)
        return effects

    def begin(
        self,
        working: WorkingSet,
        pairs: Sequence[MatchPair],
        *,
        put: Record | None = None,
        also_persons: Iterable[str] = (),
    ) -> Effects:
        """A plan without effects yet, for pairs with joint cases. The arguments are those of `surroundings.around`."""
        terms = self.terms()
        found = surroundings.around(
            working,
            pairs,
            now_ms=terms.now_ms,
            put=put,
            also_persons=also_persons,
            with_contacts=self.seals_contacts,
        )
        return Effects(terms, found, pairs)

    def begin_routes(
        self, working: WorkingSet, devices: Sequence[RoutedDevice], also_ids: Collection[str] = ()
    ) -> Effects:
        """A plan without effects yet, for the routes of these devices, and of those in `also_ids`, whose records were destroyed."""
        return Effects(self.terms(), surroundings.around_devices(working, devices, also_ids))

    # ── apply ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, working: WorkingSet, effects: Effects, *, put: PreparedRecord[Any] | None = None) -> None:
        """Change the working set as planned, and put the record that the command puts.

        Raises FailedPrecondition if a message is larger than the log accepts. Then nothing is changed.
        """
        day = effects.terms.now_ms // DAY_MS
        messages, entries = self._encoded(effects)
        for message in messages:
            check_size(message)
        if put is not None:
            working.put(put)
        working.reviews.put(effects.reviews.values())
        working.cases.put(effects.cases.values(), entries, day)
        working.events += effects.events
        working.comparisons += effects.comparisons
        working.tokens.put(effects.tokens)
        working.routes.put(effects.routes, day)
        working.messages += messages
        working.after_commit += [line.write for line in effects.logs]

    def _encoded(self, effects: Effects) -> tuple[list[OutboxMessage], dict[str, bytes]]:
        """The messages for the outbox in their order, and the last snapshot of each case by case id."""
        messages: list[OutboxMessage] = []
        entries: dict[str, bytes] = {}
        for message in effects.messages:
            match message:
                case OutboxMessage():
                    messages.append(message)
                case CaseMessage(case, version):
                    entry = entries[case.case_id] = self._entry(message, effects.found.contacts)
                    messages.append(OutboxMessage(self.subject(case.wearer_id), f"{case.case_id}:{version}", entry))
                case _:
                    assert_never(message)
        return messages, entries

    def _entry(self, message: CaseMessage, contacts: Mapping[str, Contact]) -> bytes:
        """Snapshot of a joint case as a log entry, with the contacts sealed for the warning leg."""
        snapshot = translate.case_to_proto(message.case, message.version)
        for person in snapshot.persons:
            if self._warning_key and (contact := contacts.get(person.person_id)):
                clear = translate.contact_to_proto(contact)
                person.sealed_contact = sealing.seal(clear, person.person_id, self._warning_key)
        return log_pb2.LogEntry(case=snapshot).SerializeToString(deterministic=True)
