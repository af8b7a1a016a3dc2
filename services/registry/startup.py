"""Preparation of the database at the start: unlock it, adopt a new log, and index records that were stored by older versions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from services.common.rpc.errors import FailedPrecondition
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.domain import Wearer
from services.registry.keys.vault import Vault
from services.registry.records.kinds import RECORD_TYPES, Record, RecordType
from services.registry.records.prepared import prepare as prepare_record
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork
from services.registry.working_set.working_set import WorkingSet

COMPLETED_BATCH = 200


async def prepare(transactions: Transactions, cases: CaseService, vault: Vault, *, log_created_at: str) -> None:
    """Unlock the database; call once before anything else. If the log is new, schedule all valid cases and routes for it.

    `log_created_at` is the time at which the server created the log's first partition: another time means a new log.
    Raises FailedPrecondition if the key ring lacks a master key that the database needs. Without it, records couldn't be found.
    """
    async with transactions.changing() as work:
        await _unlock(work, vault)
        if await work.meta.get("log") != log_created_at.encode():
            # The messages in the outbox were meant for the previous log.
            await work.outbox.clear()
            await work.routes.mark_unsent()
            await work.cases.mark_unsent()
            await work.meta.set("log", log_created_at.encode())
    for kind in RECORD_TYPES:
        after = ""
        while after := await _complete_some(transactions, cases, kind, after=after):
            pass


async def _unlock(work: UnitOfWork, vault: Vault) -> None:
    """Load the root key from the database, or use the vault's own, and store it wrapped with the current master key."""
    root, fingerprint = await work.meta.get("root"), await work.meta.get("key")
    with contextlib.suppress(FailedPrecondition):  # wrapped by another ring: then the fingerprint differs too
        if root is not None:
            vault.open_root(root)
    if fingerprint not in (None, vault.fingerprint):
        raise FailedPrecondition("the database was written with another key: restore TANDEM_REGISTRY_KEY or its file")
    if lacking := await work.keys.lacking():
        raise FailedPrecondition(f"the key ring lacks keys that are still needed: {', '.join(sorted(lacking))}")
    await work.meta.set("key", vault.fingerprint)
    await work.meta.set("root", vault.wrapped_root())


async def _complete_some(
    transactions: Transactions, cases: CaseService, kind: RecordType[Record], *, after: str
) -> str:
    """Add digests and match keys to a batch of records that were stored without them, and match these records.

    Returns the last id of the batch; empty if no record after the id `after` was left.
    """
    async with transactions.open() as work:
        ids = await work.reconciliation.without_digest(kind.listed_kind, kind.key, after=after, limit=COMPLETED_BATCH)
        await work.change(partial(_complete, cases=cases, kind=kind, ids=ids))
    return ids[-1] if ids else ""


def _complete(working: WorkingSet, *, cases: CaseService, kind: RecordType[Record], ids: Sequence[str]) -> None:
    # `opened` omits destroyed records: they have an id but no content.
    for record in working.records.opened(kind, ids).values():
        if isinstance(record, Wearer):
            wearer = prepare_record(record, working.vault)
            pairs = surroundings.pairs_of_wearer(working, wearer)
            cases.apply(working, cases.match(working, pairs, put=record), put=wearer)
        else:
            working.put(prepare_record(record, working.vault))
