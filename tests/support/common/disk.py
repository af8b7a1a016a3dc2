"""A disk of a test's own, which can be full: a tmpfs whose size is put to what is on it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BLOCK_BYTES = 4096


class Disk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path, size: str) -> None:
        self._folder, self._size = folder, size

    def mount(self) -> None:
        """Mounts it; the test is skipped where that isn't permitted."""
        self._folder.mkdir(parents=True)
        command = ("mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self._folder))
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount command here")
        if done.returncode:
            pytest.skip(f"mounting a tmpfs isn't permitted here: {done.stderr.strip()}")

    def fill(self) -> None:
        """Leaves one free block."""
        used = shutil.disk_usage(self._folder).used
        self._resize(str(used + BLOCK_BYTES))

    def free(self) -> None:
        """Gives all its room back."""
        self._resize(self._size)

    def unmount(self) -> None:
        """Takes it away, even while a process has files on it open."""
        subprocess.run(("umount", "-l", str(self._folder)), check=True)

    def _resize(self, size: str) -> None:
        subprocess.run(("mount", "-o", f"remount,size={size}", str(self._folder)), check=True)


@contextmanager
def own_disk(folder: Path, size: str) -> Iterator[Disk]:
    """A disk at `folder`. Its size is a limit: it takes only as much memory as is written."""
    disk = Disk(folder, size)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()
