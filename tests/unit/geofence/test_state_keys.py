"""Keys of checkpoints and digests: without a key nobody can make or guess a hash, and a key rotation causes no difference."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.errors import FailedPrecondition
from services.common.messaging.cursors import StreamCursor
from services.geofence import settings
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.settings import GeofenceSettings, StateKeys
from services.geofence.store import CheckpointStore, Footing

OLD, NEW = b"o" * 32, b"n" * 32
OPEN = codec.state_digest(State(0, sequence=5_000))


def test_a_digest_cannot_be_guessed_without_the_key() -> None:
    digest = StateKeys([OLD]).digest(0, 5_000, OPEN)
    guesses = [hashlib.sha256(OPEN).hexdigest(), StateKeys([NEW]).digest(0, 5_000, OPEN).decode()]
    assert not any(guess.rpartition(".")[2] in digest.decode() for guess in guesses)


def test_evaluators_compare_digests_only_of_the_same_log_position() -> None:
    mine, theirs = StateKeys([OLD]), StateKeys([OLD])
    digest = theirs.digest(0, 5_000, OPEN)
    assert mine.is_same(digest, 0, 5_000, encoded=OPEN) is True
    assert mine.is_same(digest, 0, 5_000, encoded=OPEN + b" ") is False
    assert mine.is_same(digest, 0, 10_000, encoded=OPEN) is False
    assert mine.is_same(digest, 1, 5_000, encoded=OPEN) is False


def test_a_key_rotation_causes_no_difference() -> None:
    before, after = StateKeys([OLD]), StateKeys([OLD, NEW])
    assert after.is_same(before.digest(0, 5_000, OPEN), 0, 5_000, encoded=OPEN) is True
    assert before.is_same(after.digest(0, 5_000, OPEN), 0, 5_000, encoded=OPEN) is None
    for strange in (b"", b".", b"\xff\xfe", hashlib.sha256(OPEN).hexdigest().encode()):
        assert before.is_same(strange, 0, 5_000, encoded=OPEN) is None


def test_a_checkpoint_verifies_with_each_kept_key(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, StateKeys([OLD]))
    store.save(0, Footing(StreamCursor(10, 1, "0" * 16), None, None), codec.encode(State(0, sequence=10)))
    (checkpoint,) = store.found(0)
    assert CheckpointStore(tmp_path, StateKeys([OLD, NEW])).read(checkpoint, "")
    assert CheckpointStore(tmp_path, StateKeys([NEW])).read(checkpoint, "") is None


def test_a_key_file_holds_one_key_per_line(tmp_path: Path) -> None:
    path = tmp_path / "state.key"
    path.write_text(f"{OLD.hex()}\n{NEW.hex()}\n")
    assert settings.read_state_keys(path).digest(0, 1, OPEN) == StateKeys([OLD, NEW]).digest(0, 1, OPEN)
    for bad in ("", "00", "not hex", OLD.hex() + "0"):
        path.write_text(bad)
        with pytest.raises(FailedPrecondition, match=r"state\.key must hold keys"):
            settings.read_state_keys(path)
    with pytest.raises(FailedPrecondition):
        settings.read_state_keys(tmp_path / "absent")


def test_an_evaluator_off_loopback_needs_a_key(tmp_path: Path) -> None:
    tls = {f"tls_{name}": tmp_path / name for name in ("cert", "key", "ca")}
    with pytest.raises(ValidationError, match="TANDEM_STATE_KEY"):
        GeofenceSettings(host="10.0.0.1", **tls)  # type: ignore[arg-type]
    given = GeofenceSettings(host="10.0.0.1", state_key=tmp_path / "state.key", **tls)  # type: ignore[arg-type]
    assert given.state_key == tmp_path / "state.key"
