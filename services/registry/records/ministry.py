"""Commands of the Ministry of Justice, which put or end wearers and tags: gather the stored state, decide, write.

A record and everything derived from it are written in one transaction. Messages for the log wait in the outbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from services.common.rpc.errors import FailedPrecondition, NotFound
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.domain import Tag, Wearer, WearerEnd
from services.registry.records import indexing, stored_versions
from services.registry.records.kinds import DEVICES, TAGS, WEARERS
from services.registry.records.store import StoredRecord
from services.registry.records.versions import PutOutcome
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork


class MinistryService:
    """The system of record for wearers and tags. Each command is one transaction."""

    def __init__(self, transactions: Transactions, cases: CaseService) -> None:
        self._transactions = transactions
        self._cases = cases

    async def put_wearer(self, wearer: Wearer) -> PutOutcome:
        """Store a wearer and match the wearer against all respondents."""
        async with self._transactions.changing() as work:
            stored = await work.records.find(WEARERS, wearer.wearer_id)
            outcome = work.records.decide(stored, wearer)
            if outcome is PutOutcome.STORED:
                stored_versions.require_same_exercise("wearer.exercise", wearer, stored.open() if stored else None)
                await self._store_wearer(work, wearer, new=stored is None)
        return outcome

    async def _store_wearer(self, work: UnitOfWork, wearer: Wearer, *, new: bool) -> None:
        pairs = await surroundings.pairs_of_wearer(work, wearer, new=new)
        effects = await self._cases.match(work, pairs, put=wearer, also_wearers=() if new else [wearer.wearer_id])
        if not new:
            for tag in effects.found.tags.get(wearer.wearer_id, ()):
                effects.send_route(tag)
        await indexing.store(work, wearer, new=new)
        await self._cases.write(work, effects)

    async def end_wearer(self, wearer_id: str, end: WearerEnd, source_version: int) -> PutOutcome:
        """End a wearer's case. Raises NotFound if the wearer is unknown, FailedPrecondition if the wearer still has a tag."""
        async with self._transactions.changing() as work:
            stored, before = stored_versions.opened(
                await work.records.find(WEARERS, wearer_id), "wearer_id: no such wearer"
            )
            wearer = replace(before, end=end, source_version=source_version)
            outcome = work.records.decide(stored, wearer)
            if outcome is PutOutcome.STORED:
                if any(tag.removed_at_ms is None for tag in await work.records.owned(TAGS, [wearer_id])):
                    raise FailedPrecondition("wearer_id: the wearer still has a tag; end the tag first")
                await indexing.store(work, wearer)
        return outcome

    async def put_tag(self, tag: Tag) -> PutOutcome:
        """Store a tag and its wearer.

        Raises NotFound if the wearer is unknown, FailedPrecondition if the id is already the id of a protective device.
        """
        async with self._transactions.changing() as work:
            stored = await work.records.find(TAGS, tag.device_id)
            outcome = work.records.decide(stored, tag)
            if outcome is PutOutcome.STORED:
                owners = stored_versions.owners(tag, stored)
                wearers = await work.records.some(WEARERS, owners)
                if tag.wearer_id not in wearers:
                    raise NotFound("tag.wearer_id: no such wearer")
                if await work.records.find(DEVICES, tag.device_id):
                    raise FailedPrecondition("tag.device_id: is already the id of a protective device")
                await self._store_tag(work, tag, owners=owners, wearers=wearers)
        return outcome

    async def end_tag(self, device_id: str, removed_at_ms: int, source_version: int) -> PutOutcome:
        """Store that a tag was taken off. Raises NotFound if the tag is unknown."""
        async with self._transactions.changing() as work:
            stored, before = stored_versions.opened(await work.records.find(TAGS, device_id), "device_id: no such tag")
            tag = replace(before, removed_at_ms=removed_at_ms, source_version=source_version)
            outcome = work.records.decide(stored, tag)
            if outcome is PutOutcome.STORED:
                wearers = await work.records.some(WEARERS, [tag.wearer_id])
                await self._store_tag(work, tag, owners=[tag.wearer_id], wearers=wearers)
        return outcome

    async def _store_tag(
        self, work: UnitOfWork, tag: Tag, *, owners: Sequence[str], wearers: Mapping[str, StoredRecord[Wearer]]
    ) -> None:
        """Store a tag, send its route, and renew the joint cases of its owners, one owner after the other."""
        cases = await work.cases.of_wearers(owners)
        cases.sort(key=lambda case: owners.index(case.wearer_id))
        pairs = await surroundings.pairs_of_cases(work, cases, wearers)
        effects = await self._cases.begin(work, pairs, put=tag, known=list(wearers.values()))
        effects.send_route(tag)
        for pair in pairs:
            effects.refresh(pair)
        await indexing.store(work, tag)
        await self._cases.write(work, effects)
