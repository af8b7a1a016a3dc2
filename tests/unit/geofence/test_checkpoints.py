"""Checkpoints count only with a keyed hash: somebody who can write to the folder but has no key can't replace a state."""

from __future__ import annotations

import hashlib
from pathlib import Path

from services.common.messaging.cursors import StreamCursor
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.store import CheckpointStore, Footing


def test_a_checkpoint_named_by_its_plain_hash_is_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    entry = StreamCursor(20, 1, "0" * 16)
    store.save(0, Footing(entry, None, None), codec.encode(State(0, sequence=20)))
    (sound,) = store.found(0)
    assert store.read(sound, "")
    forged = codec.encode(State(0, sequence=20, now_ms=1))
    head = sound.path.name.rpartition("-")[0]
    sound.path.unlink()
    (tmp_path / f"{head}-{hashlib.sha256(forged).hexdigest()}.json").write_bytes(forged)
    (named_by_plain_hash,) = store.found(0)
    assert store.read(named_by_plain_hash, "") is None
