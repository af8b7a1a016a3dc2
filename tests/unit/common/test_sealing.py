"""Sealed contacts: only the warning leg's private key opens them, and the sealed bytes reveal nothing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from services.common.errors import FailedPrecondition, InvalidField
from services.common.privacy import secret_keys
from tandem.common.v1 import contact_pb2

CONTACT = contact_pb2.Contact(handle="010-1234-5678", language=contact_pb2.LANGUAGE_KOREAN, duress_choice=2)


def test_a_contact_opens_only_with_its_key_and_for_its_person(tmp_path: Path) -> None:
    keys = secret_keys.open_private_keys(tmp_path / "warning.key")
    public = secret_keys.read_public_key(secret_keys.public_file(tmp_path / "warning.key"))
    sealed = secret_keys.seal(CONTACT, "p1", public)
    assert secret_keys.unseal(sealed, "p1", keys) == CONTACT
    others = secret_keys.open_private_keys(tmp_path / "other.key")
    flipped = bytes([*sealed[:-1], sealed[-1] ^ 1])
    for bad in (
        (sealed, "p2", keys),
        (sealed, "p1", others),
        (flipped, "p1", keys),
        (b"", "p1", keys),
        (b"x", "p1", keys),
    ):
        with pytest.raises(InvalidField):
            secret_keys.unseal(*bad)


def test_sealed_contacts_always_differ_and_have_the_same_length(tmp_path: Path) -> None:
    secret_keys.open_private_keys(tmp_path / "warning.key")
    public = secret_keys.read_public_key(tmp_path / "warning.pub")
    longest = contact_pb2.Contact(handle="가" * 200)
    sealed = [secret_keys.seal(contact, "p1", public) for contact in (CONTACT, CONTACT, longest, contact_pb2.Contact())]
    assert len(set(sealed)) == 4 and len({len(data) for data in sealed}) == 1
    assert all(b"1234" not in data for data in sealed)


def test_a_further_line_changes_the_key(tmp_path: Path) -> None:
    path = tmp_path / "warning.key"
    secret_keys.open_private_keys(path)
    before = secret_keys.seal(CONTACT, "p1", secret_keys.read_public_key(tmp_path / "warning.pub"))
    path.write_text(path.read_text() + "11" * 32 + "\n")
    keys = secret_keys.open_private_keys(path)
    after = secret_keys.seal(CONTACT, "p1", secret_keys.read_public_key(tmp_path / "warning.pub"))
    assert [secret_keys.unseal(sealed, "p1", keys) for sealed in (before, after)] == [CONTACT, CONTACT]
    with pytest.raises(InvalidField):
        secret_keys.unseal(after, "p1", keys[:1])


def test_the_key_file_is_private_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "warning.key"
    secret_keys.open_private_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("half a key")
    with pytest.raises(FailedPrecondition, match=r"warning\.key"):
        secret_keys.open_private_keys(path)
    with pytest.raises(OSError, match=r"nothing\.pub"):
        secret_keys.read_public_key(tmp_path / "nothing.pub")
