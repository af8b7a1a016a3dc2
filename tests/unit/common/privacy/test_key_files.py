"""Files of secret keys: made once and private to their owner, with the newest key last, and refused if they hold anything else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from services.common.errors import FailedPrecondition
from services.common.privacy.secret_keys import KEY_BYTES, open_keys, read_keys

OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES


def test_a_file_is_made_once_and_holds_the_newest_key_last(tmp_path: Path) -> None:
    path = tmp_path / "data" / "session.key"
    made = open_keys(path)
    assert len(made) == 1 and len(made[0]) == KEY_BYTES and open_keys(path) == made
    assert path.stat().st_mode & 0o777 == 0o600 and list(path.parent.iterdir()) == [path]
    with path.open("a") as file:
        file.write(f"{NEW.hex()}\n")
    assert open_keys(path) == (*made, NEW)
    path.write_text(OLD.hex())  # without a line feed, as in a Secret
    assert open_keys(path) == (OLD,)


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    starters = 8

    def start(path: Path, barrier: Barrier) -> tuple[bytes, ...]:
        barrier.wait()
        return open_keys(path)

    with ThreadPoolExecutor(starters) as threads:
        for n in range(20):
            path, barrier = tmp_path / f"{n}.key", Barrier(starters)
            made = {future.result() for future in [threads.submit(start, path, barrier) for _ in range(starters)]}
            assert made == {open_keys(path)}


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"k" * 32, OLD, bytes(range(128, 160)), b"00" * 31, f"{OLD.hex()}\n00\n".encode()]
)
def test_a_file_without_keys_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "session.key"
    path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"session\.key must hold keys of 64 hex digits.*: remove it$"):
        open_keys(path, "Everybody signs in again: remove it")
    assert path.read_bytes() == content


def test_a_file_that_is_missing_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="can't be read: No such file"):
        read_keys(tmp_path / "state.key")
    assert not list(tmp_path.iterdir())
