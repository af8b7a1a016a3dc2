"""A private disk for a test that can be filled: a tmpfs whose size is set to its contents."""

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
        """Mounts the disk, or skips the test if mounting isn't permitted."""
        self._folder.mkdir(parents=True)
        command = ("mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self._folder))
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command on this machine")
        if done.returncode:
            pytest.skip(f"mounting a tmpfs isn't permitted on this machine: {done.stderr.strip()}")

    def fill(self) -> None:
        """Fills the disk up to one free block."""
        used = shutil.disk_usage(self._folder).used
        self._resize(str(used + BLOCK_BYTES))

    def free(self) -> None:
        """Restores the disk's full size."""
        self._resize(self._size)

    def unmount(self) -> None:
        """Unmounts the disk, even while a process has files on it open."""
        subprocess.run(("umount", "-l", str(self._folder)), check=True)

    def _resize(self, size: str) -> None:
        subprocess.run(("mount", "-o", f"remount,size={size}", str(self._folder)), check=True)


@contextmanager
def own_disk(folder: Path, size: str) -> Iterator[Disk]:
    """A disk at `folder`, unmounted at the end. `size` is a limit: the disk uses only as much memory as is written."""
    disk = Disk(folder, size)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()
