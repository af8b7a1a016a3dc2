"""Checkpoints count only with a keyed hash: somebody who can write to the folder but has no key can't replace a state. Those that
fail or can't be read cost nothing but the next replay."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from services.common.messaging.cursors import StreamCursor
from services.geofence import gc_control
from services.geofence.checkpoints import Checkpoints, PublishedOutputs
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.store import CheckpointFailed, CheckpointStore, Footing
from tests.support.geofence.stories import Story

WITHIN_S = 60.0


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


def test_a_checkpoint_that_the_disk_does_not_give_is_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for sequence in (20, 30):
        entry = StreamCursor(sequence, 1, "0" * 16)
        store.save(0, Footing(entry, None, None), codec.encode(State(0, sequence=sequence)))
    newest, before = store.found(0)
    newest.path.unlink()
    newest.path.mkdir()  # no bytes can be read from it, as from a bad sector
    assert store.read(newest, "") is None and store.read(before, "")


def test_a_checkpoint_read_by_a_running_evaluator_leaves_automatic_collection_disabled(tmp_path: Path) -> None:
    """An evaluator reads a checkpoint while it runs when a stream went back, and while it folds another partition."""
    store = CheckpointStore(tmp_path)
    store.save(0, Footing(StreamCursor(20, 1, "0" * 16), None, None), codec.encode(State(0, sequence=20)))
    (newest,) = store.found(0)
    with gc_control.no_collection():
        assert store.read(newest, "")
        assert not gc.isenabled()
    assert store.read(newest, "")
    assert gc.isenabled()


async def test_a_checkpoint_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    published = cast(PublishedOutputs, SimpleNamespace(is_verified=True))
    checkpoints = Checkpoints(CheckpointStore(tmp_path), published, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the child inherits it
    try:
        pending = checkpoints.begin(State(0, log_id="x" * 100_000, sequence=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert pending
    checkpoints.support(pending, Footing(StreamCursor(20, 1, "0" * 16), None, None))
    running = asyncio.create_task(checkpoints.run())
    async with asyncio.timeout(WITHIN_S):
        while checkpoints._is_under_way:  # noqa: ASYNC110  # another process's work
            await asyncio.sleep(0.02)
    running.cancel()
    assert not await asyncio.to_thread(os.listdir, tmp_path)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_defect_of_the_child_is_named_by_its_type_and_place_and_not_by_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(_: State) -> bytes:
        raise KeyError("37.5665 126.9780")

    monkeypatch.setattr(codec, "encode", encode)
    store = CheckpointStore(tmp_path)
    open_files = _open_files()
    pending = store.begin(State(0, sequence=20))
    with pytest.raises(CheckpointFailed) as failed:
        async with asyncio.timeout(WITHIN_S):
            while not store.is_written(pending):  # noqa: ASYNC110  # another process's work
                await asyncio.sleep(0.02)
    line = encode.__code__.co_firstlineno + 1
    assert str(failed.value).startswith(f"the child ended with 255: KeyError at test_checkpoints.py:{line} < store.py:")
    assert "37.5" not in str(failed.value)
    store.abandon(store.begin(State(0, sequence=20)))
    assert _open_files() == open_files, "no pipe stays open"


def _story() -> Story:
    story = Story()
    story.case()
    for at_s in range(0, 4_000, 60):
        story.at(at_s, "tag", 30_000 + at_s)
    return story


def test_a_state_of_the_format_before_is_refused() -> None:
    with pytest.raises(codec.UnreadableState, match="another format"):
        codec.decode(json.dumps({"fold_version": 12, "tracks": {}}).encode())


@pytest.mark.parametrize("cut", [1, 24, 500])
def test_a_state_whose_fixes_were_cut_is_refused(cut: int) -> None:
    encoded = codec.encode(_story().state)
    assert codec.encode(codec.decode(encoded)) == encoded
    for damaged in (encoded[:-cut], encoded + bytes(cut)):
        with pytest.raises(codec.UnreadableState):
            codec.decode(damaged)


def test_packing_changes_no_byte_of_a_checkpoint() -> None:
    story = _story()
    track, encoded = story.state.tracks["tag"], codec.encode(story.state)
    assert track.older_count
    assert len(track.fixes) == track.count and not track.older_count
    assert codec.encode(story.state) == encoded
