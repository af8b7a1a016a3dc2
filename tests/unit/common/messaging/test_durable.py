"""Durable files: atomic writes, and the console's file of ended sessions."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from services.common.storage import stored_files
from services.console.sign_in.sessions import EndedSessions


def test_a_written_file_is_private_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for data in (b"one", b"two"):
        stored_files.write(path, data)
        assert path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_write_once_keeps_an_existing_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for data in (b"one", b"two"):
        stored_files.write_once(path, data)
        assert path.read_bytes() == b"one" and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "key"
    stored_files.write(path, b"before")

    def fails(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(*((os, "fsync", fails) if step == "fsync" else (Path, "replace", fails)))
    with pytest.raises(OSError, match="no space"):
        stored_files.write(path, b"after")
    assert path.read_bytes() == b"before"
    monkeypatch.undo()
    stored_files.write(path, b"after")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path], (
        "the draft of the failed write doesn't hinder the next one"
    )


def test_the_data_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file")  # noqa: PTH112
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    stored_files.write(tmp_path / "key", b"x")
    assert done == ["file", "name", "folder"]


async def test_an_ended_session_stays_ended_after_a_restart_until_it_expires(tmp_path: Path) -> None:
    path, now_s = tmp_path / "ended.json", int(time.time())
    first = EndedSessions(path)
    first.load()
    await first.add("expired", now_s - 1)
    await first.add("a", now_s + 60)
    await first.add("b", now_s + 60)
    reloaded = EndedSessions(path)
    reloaded.load()
    assert ["a" in reloaded, "b" in reloaded, "c" in reloaded, "expired" in reloaded] == [True, True, False, False]


async def test_a_session_is_ended_even_if_the_file_cannot_be_written(tmp_path: Path) -> None:
    ended = EndedSessions(tmp_path / "no-such-folder" / "ended.json")
    await ended.add("a", int(time.time()) + 60)
    assert "a" in ended


@pytest.mark.parametrize("text", ["[]", "1", "null", '{"a": []}', '{"a": null}', '{"a": "soon"}', "{", ""])
def test_a_malformed_file_of_ended_sessions_raises_value_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ended.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        EndedSessions(path).load()
