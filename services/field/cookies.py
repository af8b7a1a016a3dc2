"""Values of cookies: encrypted, with a time after which they no longer open."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class SealedCookies:
    """Seals and opens the contents of cookies. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes], lasts_s: int) -> None:
        self._fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in reversed(keys)])
        self._lasts_s = lasts_s

    def seal(self, content: Mapping[str, str]) -> str:
        """The value of a cookie with this content."""
        return self._fernet.encrypt(json.dumps(content).encode()).decode()

    def open(self, cookie: str) -> dict[str, Any] | None:
        """The content of a cookie; None if the cookie is none of ours or too old."""
        try:
            content = json.loads(self._fernet.decrypt(cookie.encode(), ttl=self._lasts_s))
        except (InvalidToken, ValueError):
            return None
        return content if isinstance(content, dict) else None
