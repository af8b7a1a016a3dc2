"""Hashed match keys in memory, by which a record finds the records that may describe the same person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from services.registry.matching.similarity import Side
from services.registry.records.prepared import PreparedRecord
from services.registry.working_set.cached_rows import Lookup, read_rows

_KEY_HASH = Lookup("key_hash", "BYTEA")


class MatchKeyRows:
    """The match keys as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._sides = {side: _SideRows(connection, side) for side in Side}

    def sharing(self, side: Side, keys: Iterable[bytes]) -> set[str]:
        """Ids of the records of a side that share at least one of these match keys."""
        return self._sides[side].sharing(tuple(keys))

    def put(self, side: Side, prepared: PreparedRecord[Any]) -> None:
        """Replace the match keys of a record."""
        self._sides[side].put(prepared.record_id, prepared.match_keys)


class _SideRows:
    """The match keys of one side."""

    def __init__(self, connection: Connection, side: Side) -> None:
        self._connection = connection
        self._select = f"SELECT key_hash, record_id FROM match_keys WHERE side = '{side.value}' AND"  # noqa: S608  # an enum's value
        self._record_ids: dict[bytes, set[str]] = defaultdict(set)
        """Ids of the records that share a key. Complete for the keys in `_complete`."""
        self._complete: set[bytes] = set()
        self._keys_of: dict[str, set[bytes]] = defaultdict(set)
        """Keys in memory of each record."""
        self._put: set[str] = set()
        """Ids of the records whose keys are put."""

    def sharing(self, keys: Sequence[bytes]) -> set[str]:
        """Ids of the records that share at least one of these match keys."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self._complete]
        if unknown:
            for key, record_id in read_rows(self._connection, self._select, _KEY_HASH, values=unknown):
                # The keys in the database of a record that is put are outdated.
                if record_id not in self._put:
                    self._add(key, record_id)
            self._complete.update(unknown)
        return {record_id for key in keys for record_id in self._record_ids.get(key, ())}

    def put(self, record_id: str, keys: Iterable[bytes]) -> None:
        """Replace the match keys of a record."""
        for key in self._keys_of.pop(record_id, ()):
            self._record_ids[key].discard(record_id)
        self._put.add(record_id)
        for key in keys:
            self._add(key, record_id)

    def _add(self, key: bytes, record_id: str) -> None:
        self._record_ids[key].add(record_id)
        self._keys_of[record_id].add(key)
