"""Hashed match keys in memory, by which a record finds the records that may describe the same person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from services.registry.matching.similarity import Side
from services.registry.records.prepared import PreparedRecord
from services.registry.working_set.cached_rows import Lookup, read_rows

_KEY_HASH = Lookup("key_hash", "BYTEA")


class MatchKeyRows:
    """The match keys as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._record_ids: dict[tuple[Side, bytes], set[str]] = defaultdict(set)
        """Ids of the records that share a key, by side and key. Complete for the keys in `_complete`."""
        self._complete: set[tuple[Side, bytes]] = set()
        self._keys_of: dict[tuple[Side, str], set[bytes]] = defaultdict(set)
        """Keys in memory of each record, by side and record id."""
        self._put: set[tuple[Side, str]] = set()
        """Side and id of the records whose keys are put."""

    def sharing(self, side: Side, keys: Iterable[bytes]) -> set[str]:
        """Ids of the records of a side that share at least one of these match keys."""
        wanted = tuple(keys)
        self.load(side, wanted)
        return {record_id for key in wanted for record_id in self._record_ids.get((side, key), ())}

    def load(self, side: Side, keys: Iterable[bytes]) -> None:
        """Read the records that share these match keys."""
        unknown = [key for key in dict.fromkeys(keys) if (side, key) not in self._complete]
        if not unknown:
            return
        select = f"SELECT key_hash, record_id FROM match_keys WHERE side = '{side.value}' AND"  # noqa: S608  # an enum's value
        for key, record_id in read_rows(self._connection, select, _KEY_HASH, values=unknown):
            # The keys in the database of a record that is put are outdated.
            if (side, record_id) not in self._put:
                self._add(side, bytes(key), record_id)
        self._complete.update((side, key) for key in unknown)

    def put(self, side: Side, prepared: PreparedRecord[Any]) -> None:
        """Replace the match keys of a record."""
        record_id = prepared.record_id
        for key in self._keys_of.pop((side, record_id), ()):
            self._record_ids[side, key].discard(record_id)
        self._put.add((side, record_id))
        for key in prepared.match_keys:
            self._add(side, key, record_id)

    def _add(self, side: Side, key: bytes, record_id: str) -> None:
        self._record_ids[side, key].add(record_id)
        self._keys_of[side, record_id].add(key)
