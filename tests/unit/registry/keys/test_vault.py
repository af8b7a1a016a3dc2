"""Encryption of personal data at rest: values bound to their row, and keyed hashes for lookups."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from pydantic import ValidationError

from services.common.errors import FailedPrecondition
from services.registry.keys import Vault
from services.registry.settings import RegistrySettings

KEY = bytes(range(32))


def test_a_sealed_value_opens_only_for_its_owner() -> None:
    vault = Vault([KEY])
    sealed = vault.seal("wearers/w-1", b"secret")
    assert b"secret" not in sealed and sealed != vault.seal("wearers/w-1", b"secret")
    assert vault.unseal("wearers/w-1", sealed) == b"secret"
    with pytest.raises(InvalidTag):
        vault.unseal("wearers/w-2", sealed)
    with pytest.raises(InvalidTag):
        vault.unseal("wearers/w-1", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(InvalidTag):
        Vault([bytes(32)]).unseal("wearers/w-1", sealed)


def test_equal_values_have_equal_hashes_only_with_the_same_key() -> None:
    vault = Vault([KEY])
    assert vault.index("a") == Vault([KEY]).index("a")
    assert len({vault.index("a"), vault.index("b"), vault.digest(b"a"), Vault([bytes(32)]).index("a")}) == 4


def test_each_record_has_its_own_key_wrapped_by_the_ring() -> None:
    vault = Vault([KEY])
    key = vault.make_key("wearers/w-1")
    sealed = vault.seal("wearers/w-1", b"secret", key)
    assert vault.unseal("wearers/w-1", sealed, key) == b"secret"
    for other in (None, vault.make_key("wearers/w-1")):
        with pytest.raises(InvalidTag):
            vault.unseal("wearers/w-1", sealed, other)
    with pytest.raises(InvalidTag):
        vault.unseal("wearers/w-2", sealed, key)


def test_a_rotated_ring_opens_older_keys_and_rewraps_them() -> None:
    newer = bytes(range(1, 33))
    old, both = Vault([KEY]), Vault([KEY, newer])
    key = old.make_key("orders/o-1")
    sealed = old.seal("orders/o-1", b"secret", key)
    rewrapped = both.rewrap("orders/o-1", key)
    assert (key.ring, rewrapped.ring) == (old.current, both.current) and old.current != both.current
    assert both.unseal("orders/o-1", sealed, key) == both.unseal("orders/o-1", sealed, rewrapped) == b"secret"
    with pytest.raises(FailedPrecondition, match="ring lacks"):
        old.unseal("orders/o-1", sealed, rewrapped)
    # Hashes and the fingerprint come from the root key, so the rotation doesn't change them.
    assert (old.index("a"), old.digest(b"a"), old.fingerprint) == (both.index("a"), both.digest(b"a"), both.fingerprint)


def test_a_ring_with_a_repeated_key_is_rejected() -> None:
    with pytest.raises(FailedPrecondition, match="holds a key twice"):
        Vault([KEY, bytes(32), KEY])


def test_an_invalid_key_is_not_printed() -> None:
    with pytest.raises(ValidationError) as refusal:
        RegistrySettings(registry_key="5ec7e7" * 5)  # type: ignore[arg-type]
    assert "5ec7e7" not in str(refusal.value)
    assert "5ec7e7" not in repr(RegistrySettings(registry_key="5ec7e7ab" * 8))  # type: ignore[arg-type]
