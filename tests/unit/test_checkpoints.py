"""A checkpoint counts by a keyed hash: who can write to the folder, and has no key, puts no state in its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.store import CheckpointStore


def test_a_state_that_is_named_by_its_plain_hash_is_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(0, 10, codec.encode(State(0, sequence=10)))
    forged = codec.encode(State(0, sequence=20))
    (tmp_path / f"checkpoint-p0-s20-{hashlib.sha256(forged).hexdigest()}.json").write_bytes(forged)
    loaded = store.load(0, "")
    assert loaded is not None and loaded.sequence == 10
