"""The cookie of an enrolled phone: encrypted, bound to the person's id, the device and the phone's own key."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.common.rpc.errors import FailedPrecondition
from services.common.storage import durable
from services.field.cookies import SealedCookies

COOKIE = "app"
LASTS_S = 180 * 86_400
"""Lifetime of the cookie, seconds. Then the phone is enrolled again."""
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class PhoneSession:
    """An enrolled phone."""

    device_id: str
    person_id: str
    token: str
    """Token of the device. Only field and ingest see it, and the phone has it in encrypted form."""
    key: str
    """Public key of the phone, base64url of the uncompressed point on P-256. Its private key never leaves the phone."""


class PhoneCookies:
    """Seals and opens cookies. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._sealed = SealedCookies(keys, LASTS_S)

    def seal(self, session: PhoneSession) -> str:
        """The value of a phone's cookie."""
        return self._sealed.seal(asdict(session))

    def open(self, cookie: str) -> PhoneSession | None:
        """The phone of a cookie; None if the cookie is none of ours or too old."""
        content = self._sealed.open(cookie)
        try:
            return None if content is None else PhoneSession(**content)
        except TypeError:
            return None


def open_keys(path: Path) -> tuple[bytes, ...]:
    """Returns the keys of a file of 64 hex digits a line, the newest last. The first start makes the file with one key.

    Raises FailedPrecondition if a line is no key.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_once(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode())
    try:
        keys = tuple(bytes.fromhex(line) for line in path.read_text("ascii").split())
    except ValueError:
        keys = ()
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise FailedPrecondition(
            f"{path} must hold keys of {2 * KEY_BYTES} hex digits, one a line (example: openssl rand -hex {KEY_BYTES}). "
            "With a new key all phones must be enrolled again"
        )
    return keys
