"""Commands of the Ministry of Justice, which put or end wearers and tags: gather the stored state, decide, apply.

A record and everything derived from it are written in one transaction. Messages for the log wait in the outbox.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from services.common.errors import FailedPrecondition, InvalidField
from services.common.privacy.notices import TagBasis
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import Tag, Wearer, WearerEnd, WearerEndReason
from services.registry.records.kinds import DEVICES, TAGS, UNIT_TYPES, WEARER_UNITS, WEARERS
from services.registry.records.store import (
    PreparedRecord,
    owners_before_and_after,
    prepare,
    require_kept,
    require_opened,
    require_same_exercise,
)
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet


class MinistryService:
    """The system of record for wearers and tags. Each command is one transaction; `apply_...` is a part of a batch."""

    def __init__(self, transactions: Transactions, cases: CaseService) -> None:
        self._transactions = transactions
        self._cases = cases

    async def put_wearer(self, wearer: Wearer) -> PutOutcome:
        """Store a wearer and match the wearer against all respondents."""
        prepared = prepare(wearer, self._transactions.vault)
        return await self._transactions.change(partial(self.apply_wearer, prepared=prepared))

    def apply_wearer(self, working: WorkingSet, prepared: PreparedRecord[Wearer]) -> PutOutcome:
        """Put a wearer in a working set. Raises Conflict or InvalidField; then nothing is changed."""
        wearer = prepared.record
        stored = working.records.find(WEARERS, wearer.wearer_id)
        outcome = working.records.decide(stored, prepared)
        if outcome is not PutOutcome.STORED:
            return outcome
        new = stored is None
        require_same_exercise("wearer.exercise", wearer, stored.open() if stored else None)
        pairs = surroundings.pairs_of_wearer(working, prepared, new=new)
        effects = self._cases.match(working, pairs, put=wearer, also_wearers=() if new else [wearer.wearer_id])
        if not new:
            for tag in effects.found.tags.get(wearer.wearer_id, ()):
                effects.send_route(tag)
        self._cases.apply(working, effects, put=prepared)
        return outcome

    async def end_wearer(self, wearer_id: str, end: WearerEnd, source_version: int) -> PutOutcome:
        """End a wearer's case.

        Raises NotFound if the wearer is unknown, FailedPrecondition if the wearer still has a tag, InvalidField if the data would be
        destroyed at once although a tag rested on a judgment.
        """

        def apply(working: WorkingSet) -> PutOutcome:
            found = working.records.find(WEARERS, wearer_id)
            stored, before = require_opened(found, "wearer_id: no such wearer")
            prepared = prepare(replace(before, end=end, source_version=source_version), working.vault)
            outcome = working.records.decide(stored, prepared)
            if outcome is PutOutcome.STORED:
                tags = working.records.owned(TAGS, [wearer_id])
                if any(tag.removed_at_ms is None for tag in tags):
                    raise FailedPrecondition("wearer_id: the wearer still has a tag; end the tag first")
                if end.reason is not WearerEndReason.COMPLETED and any(tag.basis is TagBasis.JUDGMENT for tag in tags):
                    raise InvalidField(
                        "reason",
                        f"{end.reason.value} destroys the data at once, as the law says for tags of item 3-2 alone, and a tag of this "
                        "wearer rested on a judgment: use COMPLETED",
                    )
                if any(unit.installed_until_ms is None for unit in working.records.owned(WEARER_UNITS, [wearer_id])):
                    raise FailedPrecondition("wearer_id: the wearer still has a home unit or beacon; end it first")
                working.put(prepared)
            return outcome

        return await self._transactions.change(apply)

    async def put_tag(self, tag: Tag) -> PutOutcome:
        """Store a tag and its wearer.

        Raises NotFound if the wearer is unknown or destroyed, FailedPrecondition if the id is already the id of a protective device.
        """
        prepared = prepare(tag, self._transactions.vault)
        return await self._transactions.change(partial(self.apply_tag, prepared=prepared))

    def apply_tag(self, working: WorkingSet, prepared: PreparedRecord[Tag]) -> PutOutcome:
        """Put a tag in a working set. Raises Conflict, NotFound or FailedPrecondition; then nothing is changed."""
        tag = prepared.record
        stored = working.records.find(TAGS, tag.device_id)
        outcome = working.records.decide(stored, prepared)
        if outcome is PutOutcome.STORED:
            owners = owners_before_and_after(tag, stored)
            wearers = working.records.some(WEARERS, owners)
            require_kept(wearers, tag.wearer_id, "tag.wearer_id: no such wearer")
            if any(working.records.find(kind, tag.device_id) for kind in UNIT_TYPES):
                raise FailedPrecondition("tag.device_id: is already the id of a home unit or beacon")
            if working.records.find(DEVICES, tag.device_id):
                raise FailedPrecondition("tag.device_id: is already the id of a protective device")
            self._put_tag(working, prepared, owners)
        return outcome

    async def end_tag(self, device_id: str, removed_at_ms: int, source_version: int) -> PutOutcome:
        """Store that a tag was taken off. Raises NotFound if the tag is unknown."""

        def apply(working: WorkingSet) -> PutOutcome:
            found = working.records.find(TAGS, device_id)
            stored, before = require_opened(found, "device_id: no such tag")
            tag = replace(before, removed_at_ms=removed_at_ms, source_version=source_version)
            prepared = prepare(tag, working.vault)
            outcome = working.records.decide(stored, prepared)
            if outcome is PutOutcome.STORED:
                self._put_tag(working, prepared, [tag.wearer_id])
            return outcome

        return await self._transactions.change(apply)

    def _put_tag(self, working: WorkingSet, prepared: PreparedRecord[Tag], owners: list[str]) -> None:
        """Put a tag, send its route, and renew the joint cases of its owners, one owner after the other."""
        cases = working.cases.of_wearers(owners)
        cases.sort(key=lambda case: owners.index(case.wearer_id))
        pairs = surroundings.pairs_of_cases(working, cases)
        effects = self._cases.begin(working, pairs, put=prepared.record)
        effects.send_route(prepared.record)
        for pair in pairs:
            effects.refresh(pair)
        self._cases.apply(working, effects, put=prepared)
