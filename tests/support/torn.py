"""Damage to the streams of a stopped nats-server, after which they go back: a torn tail, or an older copy of the store."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

MAX_TORN_BYTES = 64


def newest_block(store: Path, stream: str) -> Path:
    """File with the last messages of a stream."""
    blocks = list(folder_of(store, stream).glob("msgs/*.blk"))
    return max(blocks, key=lambda path: int(path.stem))


def folder_of(store: Path, stream: str) -> Path:
    """Folder of a stream in a server's store."""
    (folder,) = (path for path in store.rglob(f"streams/{stream}") if path.is_dir())
    return folder


def overwrite_tail(store: Path, stream: str, drawn: random.Random) -> int:
    """Overwrites the last bytes of a stream's newest block, like a write that never reached the disk. Returns their number."""
    path = newest_block(store, stream)
    count = min(drawn.randint(1, MAX_TORN_BYTES), path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(-count, 2)
        file.write(drawn.randbytes(count))
    return count


def truncate_tail(store: Path, stream: str, drawn: random.Random) -> int:
    """Truncates the last bytes of a stream's newest block. Returns their number."""
    path = newest_block(store, stream)
    size = path.stat().st_size
    count = min(drawn.randint(1, MAX_TORN_BYTES), size)
    with path.open("r+b") as file:
        file.truncate(size - count)
    return count


def copy_of(store: Path, stream: str, to: Path) -> None:
    """Copies a stream's folder as it is on disk now."""
    shutil.copytree(folder_of(store, stream), to)


def put_back(store: Path, stream: str, copy: Path) -> None:
    """Replaces a stream's folder by an older copy. The server must be stopped."""
    folder = folder_of(store, stream)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
