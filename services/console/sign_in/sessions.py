"""The signed cookie and the token against forged requests. Nothing is stored: a session is what its signature says. Pure.

A cookie is `payload.mac`, where the payload holds a random id, role, name and the moment until which it is good. Before somebody
signs in they have a cookie without a role, so that signing in is guarded against forging like everything else.
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
"""A shift."""
ATTEMPT_COOKIE = "tandem_attempt"
ATTEMPT_LASTS_S = 600
"""How long somebody may take at the identity provider."""


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """What a cookie says."""

    session_id: str
    """Random, 32 hex digits."""
    user: ConsoleUser | None
    """None before somebody signs in."""
    until_s: int
    """Wall clock, seconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody who goes to the identity provider and comes back. All follows from the cookie's random id and the key."""

    cookie: str
    """`id.until.mac`."""
    state: str
    """Comes back in the address: the answer is to what this browser asked."""
    nonce: str
    """Comes back in the token: it was made for this attempt."""
    verifier: str
    """PKCE's: only whoever holds the key can use the code."""


def bound(key: bytes, issuer: str) -> bytes:
    """The key of sessions that this issuer's word began; an empty one is that of development users."""
    return hmac.new(key, f"issuer\n{issuer}".encode(), hashlib.sha256).digest()


def attempt_of(attempt_id: str, until_s: int, key: bytes) -> Attempt:
    """The attempt with this random id, good until then."""
    payload = f"{attempt_id}.{until_s}"
    parts = (_mac(key, what, payload) for what in ("state", "nonce", "verifier"))
    return Attempt(f"{payload}.{_mac(key, 'attempt', payload)}", *parts)


def attempt_in(cookie: str, key: bytes, now_s: float) -> Attempt | None:
    """The attempt of a cookie; None where it isn't signed with `key`, is over, or is none."""
    payload, _, mac = cookie.rpartition(".")
    if not is_same(mac, _mac(key, "attempt", payload)):
        return None
    attempt_id, _, until = payload.partition(".")
    return attempt_of(attempt_id, int(until), key) if int(until) > now_s else None


def is_same(text: str, other: str) -> bool:
    """Whether two secrets are; it takes as long either way."""
    return hmac.compare_digest(text.encode(errors="replace"), other.encode(errors="replace"))


def seal(session: ConsoleSession, key: bytes) -> str:
    """The cookie of a session."""
    user = session.user
    told = {
        "id": session.session_id,
        "role": user.role.value if user else "",
        "name": user.name if user else "",
        "until": session.until_s,
    }
    payload = base64.urlsafe_b64encode(json.dumps(told).encode()).decode()
    return f"{payload}.{_mac(key, 'session', payload)}"


def unseal(cookie: str, key: bytes, now_s: float) -> ConsoleSession | None:
    """The session of a cookie; None where it isn't signed with `key`, is over, or is none."""
    payload, _, mac = cookie.partition(".")
    if not is_same(mac, _mac(key, "session", payload)):
        return None
    told = json.loads(base64.urlsafe_b64decode(payload))
    if told["until"] <= now_s:
        return None
    user = ConsoleUser(Role(told["role"]), told["name"]) if told["role"] else None
    return ConsoleSession(told["id"], user, told["until"])


def token_of(session: ConsoleSession, key: bytes) -> str:
    """What a page of this session sends with each POST; another page can't know it."""
    return _mac(key, "csrf", session.session_id)


def is_token(session: ConsoleSession, key: bytes, token: str) -> bool:
    """Whether that is it."""
    return is_same(token, token_of(session, key))


def user_of(role: str, name: str) -> ConsoleUser | None:
    """The user with this role and name; None where either can't be."""
    if role not in set(Role) or not NAME.fullmatch(name) or name == SELF:
        return None
    return ConsoleUser(Role(role), name)


def _mac(key: bytes, what: str, text: str) -> str:
    return hmac.new(key, f"{what}\n{text}".encode(), hashlib.sha256).hexdigest()
