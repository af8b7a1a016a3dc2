"""Signed session cookies and tokens against forged requests. Nothing is stored: the signed cookie is the session. Pure.

A cookie is `payload.mac`; the payload holds a random id, role, name and expiry. Before signing in, a browser has a cookie without a
role, so that the sign-in form is guarded against forged requests, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from services.console.domain.people import NAME, SELF, ConsoleUser, Role

COOKIE = "tandem_session"
LASTS_S = 12 * 3600
"""Lifetime of a session, in s: a shift."""
ATTEMPT_COOKIE = "tandem_attempt"
ATTEMPT_LASTS_S = 600
"""Time for signing in at the identity provider, in s."""


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """Session of a browser, as its cookie holds it."""

    session_id: str
    """Random id of 32 hex digits."""
    user: ConsoleUser | None
    """Signed-in user; None before signing in."""
    until_s: int
    """Expiry by wall clock, seconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Attempt to sign in at the identity provider. All values derive from the cookie's random id and the key."""

    cookie: str
    """Cookie `id.until.mac`."""
    state: str
    """Value that returns in the address and proves that the answer belongs to this browser's request."""
    nonce: str
    """Value that returns in the token and proves that it was made for this attempt."""
    verifier: str
    """PKCE code verifier: only the holder of the key can use the code."""


def bound(key: bytes, issuer: str) -> bytes:
    """Derives the key of sessions that an issuer authenticated; an empty issuer stands for development users."""
    return hmac.new(key, f"issuer\n{issuer}".encode(), hashlib.sha256).digest()


def attempt_of(attempt_id: str, until_s: int, key: bytes) -> Attempt:
    """Derives the attempt with this random id and expiry."""
    payload = f"{attempt_id}.{until_s}"
    parts = (_mac(key, what, payload) for what in ("state", "nonce", "verifier"))
    return Attempt(f"{payload}.{_mac(key, 'attempt', payload)}", *parts)


def attempt_in(cookie: str, key: bytes, now_s: float) -> Attempt | None:
    """Returns the attempt of a cookie; None where it isn't signed with `key`, has expired, or is malformed."""
    payload, _, mac = cookie.rpartition(".")
    if not is_same(mac, _mac(key, "attempt", payload)):
        return None
    attempt_id, _, until = payload.partition(".")
    return attempt_of(attempt_id, int(until), key) if int(until) > now_s else None


def is_same(text: str, other: str) -> bool:
    """Compares two secrets in constant time."""
    return hmac.compare_digest(text.encode(errors="replace"), other.encode(errors="replace"))


def seal(session: ConsoleSession, key: bytes) -> str:
    """Returns the cookie of a session."""
    user = session.user
    content = {
        "id": session.session_id,
        "role": user.role.value if user else "",
        "name": user.name if user else "",
        "until": session.until_s,
    }
    payload = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    return f"{payload}.{_mac(key, 'session', payload)}"


def unseal(cookie: str, key: bytes, now_s: float) -> ConsoleSession | None:
    """Returns the session of a cookie; None where it isn't signed with `key`, has expired, or is malformed."""
    payload, _, mac = cookie.partition(".")
    if not is_same(mac, _mac(key, "session", payload)):
        return None
    content = json.loads(base64.urlsafe_b64decode(payload))
    if content["until"] <= now_s:
        return None
    user = ConsoleUser(Role(content["role"]), content["name"]) if content["role"] else None
    return ConsoleSession(content["id"], user, content["until"])


def token_of(session: ConsoleSession, key: bytes) -> str:
    """Returns the token that a page of this session sends with each POST, and that another page can't know."""
    return _mac(key, "csrf", session.session_id)


def is_token(session: ConsoleSession, key: bytes, token: str) -> bool:
    """Returns whether `token` is that of the session."""
    return is_same(token, token_of(session, key))


def user_of(role: str, name: str) -> ConsoleUser | None:
    """Returns the user with this role and name; None where either is invalid."""
    if role not in set(Role) or not NAME.fullmatch(name) or name == SELF:
        return None
    return ConsoleUser(Role(role), name)


def _mac(key: bytes, what: str, text: str) -> str:
    return hmac.new(key, f"{what}\n{text}".encode(), hashlib.sha256).hexdigest()
