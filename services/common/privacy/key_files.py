"""Files of secret keys: 64 hex digits a line. An appended line becomes the key in use; the lines before it open what they sealed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

from services.common.rpc.errors import FailedPrecondition
from services.common.storage import durable

KEY_BYTES = 32


def open_keys(path: Path, advice: str = "") -> tuple[bytes, ...]:
    """Returns the keys of a file, the newest last. The first start makes the file with one key, readable by its owner only.

    Raises FailedPrecondition as `read_keys` does.
    """
    make_key_once(path)
    return read_keys(path, advice)


def make_key_once(path: Path) -> None:
    """Makes a file with one key, and its folder, unless the file exists. Processes that start together make one file."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_once(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode())


def read_keys(path: Path, advice: str = "") -> tuple[bytes, ...]:
    """Returns the keys of a file, the newest last.

    Raises FailedPrecondition if the file can't be read, and, with `advice`, if it has no line or a line that is no key: what an empty
    or short key signs, anybody could sign.
    """
    try:
        return parse_keys(path.read_text("ascii").split())
    except OSError as error:
        raise FailedPrecondition(f"{path} can't be read: {error.strerror}") from error
    except ValueError:
        raise FailedPrecondition(
            f"{path} must hold keys of {2 * KEY_BYTES} hex digits, one a line (example: openssl rand -hex {KEY_BYTES})"
            + (f". {advice}" if advice else "")
        ) from None


def parse_keys(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Parses keys from hex digits. Raises ValueError if a key is malformed, or if there is none."""
    keys = tuple(bytes.fromhex(text) for text in texts)
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise ValueError("not keys")
    return keys
