"""Streams of a nats-server that go back while it is dead: a torn tail, or an older copy of the store put in place."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

TORN_BYTES_MAX = 64


def newest_block(store: Path, stream: str) -> Path:
    """File that holds the last messages of a stream."""
    blocks = list(folder_of(store, stream).glob("msgs/*.blk"))
    return max(blocks, key=lambda path: int(path.stem))


def folder_of(store: Path, stream: str) -> Path:
    """Folder of a stream below a server's store."""
    (folder,) = (path for path in store.rglob(f"streams/{stream}") if path.is_dir())
    return folder


def overwrite_tail(store: Path, stream: str, drawn: random.Random) -> int:
    """Overwrites the last bytes of a stream's newest block, as a write that never reached the disk leaves them; returns how many."""
    path = newest_block(store, stream)
    count = min(drawn.randint(1, TORN_BYTES_MAX), path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(-count, 2)
        file.write(drawn.randbytes(count))
    return count


def truncate_tail(store: Path, stream: str, drawn: random.Random) -> int:
    """Cuts the last bytes off a stream's newest block; returns how many."""
    path = newest_block(store, stream)
    size = path.stat().st_size
    count = min(drawn.randint(1, TORN_BYTES_MAX), size)
    with path.open("r+b") as file:
        file.truncate(size - count)
    return count


def copy_of(store: Path, stream: str, to: Path) -> None:
    """Keeps a copy of a stream as it is on disk now."""
    shutil.copytree(folder_of(store, stream), to)


def put_back(store: Path, stream: str, copy: Path) -> None:
    """Puts an older copy in a stream's place; its server must be dead."""
    folder = folder_of(store, stream)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
