"""Personal data at rest: sealed to its row, found by keyed hash, under a key that only its owner reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from cryptography.exceptions import InvalidTag
from pydantic import ValidationError

from services.common.rpc.errors import FailedPrecondition
from services.registry.settings import RegistrySettings
from services.registry.vault import Vault, read_or_make_keys

KEY = bytes(range(32))


def test_what_was_sealed_opens_for_its_owner_only() -> None:
    vault = Vault(KEY)
    sealed = vault.seal("wearers/w-1", b"secret")
    assert b"secret" not in sealed and sealed != vault.seal("wearers/w-1", b"secret")
    assert vault.unseal("wearers/w-1", sealed) == b"secret"
    with pytest.raises(InvalidTag):
        vault.unseal("wearers/w-2", sealed)
    with pytest.raises(InvalidTag):
        vault.unseal("wearers/w-1", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(InvalidTag):
        Vault(bytes(32)).unseal("wearers/w-1", sealed)


def test_equal_values_have_equal_hashes_under_one_key_only() -> None:
    vault = Vault(KEY)
    assert vault.index("a") == Vault(KEY).index("a")
    assert len({vault.index("a"), vault.index("b"), vault.digest(b"a"), Vault(bytes(32)).index("a")}) == 4


def test_the_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "registry.key"
    (key,) = read_or_make_keys(path)
    assert len(key) == 32 and read_or_make_keys(path) == (key,)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one for one in path.parent.iterdir() if one.stat().st_size] == [path]


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    starters = 8

    def start(path: Path, barrier: Barrier) -> tuple[bytes, ...]:
        barrier.wait()
        return read_or_make_keys(path)

    with ThreadPoolExecutor(starters) as threads:
        for n in range(20):
            path, barrier = tmp_path / f"{n}.key", Barrier(starters)
            made = {one.result() for one in [threads.submit(start, path, barrier) for _ in range(starters)]}
            assert made == {read_or_make_keys(path)}


def test_a_record_has_a_key_of_its_own_which_the_ring_wraps() -> None:
    vault = Vault(KEY)
    key = vault.make_key("wearers/w-1")
    sealed = vault.seal("wearers/w-1", b"secret", key)
    assert vault.unseal("wearers/w-1", sealed, key) == b"secret"
    for other in (None, vault.make_key("wearers/w-1")):
        with pytest.raises(InvalidTag):
            vault.unseal("wearers/w-1", sealed, other)
    with pytest.raises(InvalidTag):
        vault.unseal("wearers/w-2", sealed, key)


def test_a_rotated_ring_opens_what_is_old_and_wraps_anew() -> None:
    newer = bytes(range(1, 33))
    old, both = Vault(KEY), Vault(KEY, newer)
    key = old.make_key("orders/o-1")
    sealed = old.seal("orders/o-1", b"secret", key)
    again = both.rewrap("orders/o-1", key)
    assert (key.ring, again.ring) == (old.current, both.current) and old.current != both.current
    assert both.unseal("orders/o-1", sealed, key) == both.unseal("orders/o-1", sealed, again) == b"secret"
    with pytest.raises(FailedPrecondition, match="ring lacks"):
        old.unseal("orders/o-1", sealed, again)
    # Equal values are still found, and it is still the same database.
    assert (old.index("a"), old.digest(b"a"), old.fingerprint) == (both.index("a"), both.digest(b"a"), both.fingerprint)


@pytest.mark.parametrize("content", ["", "00" * 31, "not a key", "\n".join(["00" * 32] * 2)])
def test_a_damaged_key_file_is_refused_and_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "registry.key"
    path.write_text(content)
    with pytest.raises(FailedPrecondition, match=r"registry\.key"):
        read_or_make_keys(path)
    assert path.read_text() == content


def test_a_refused_key_is_not_printed() -> None:
    with pytest.raises(ValidationError) as refusal:
        RegistrySettings(registry_key="5ec7e7" * 5)  # type: ignore[arg-type]
    assert "5ec7e7" not in str(refusal.value)
    assert "5ec7e7" not in repr(RegistrySettings(registry_key="5ec7e7ab" * 8))  # type: ignore[arg-type]
