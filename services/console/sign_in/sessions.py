"""Signed cookies of sessions and sign-in attempts, tokens against forged requests, and the list of sessions that were ended.

The library itsdangerous signs each cookie, with the time of signing. Each purpose has its own salt, so that a cookie made for one
purpose isn't valid for another. The cookie is the session; only the ended ones are stored.
Before signing in, a browser has a session without a user, so that the sign-in form is guarded against forged requests, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from itsdangerous import BadData, Signer, URLSafeTimedSerializer
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from services.common.observability.telemetry import logger
from services.common.storage import stored_files
from services.console.domain.people import NAME, SELF, ConsoleUser, Role

COOKIE = "tandem_session"
LASTS_S = 12 * 3600
"""Lifetime of a session, in s: a shift."""
CALLBACK = "/sign-in/callback"
"""Path to which the identity provider sends the browser back. Browsers send the cookie of an attempt to this path alone."""
ATTEMPT_COOKIE = "tandem_attempt"
ATTEMPT_LASTS_S = 600
"""Time for signing in at the identity provider, in s."""
_HMAC_SHA256: dict[str, Any] = {"key_derivation": "hmac", "digest_method": hashlib.sha256}


@dataclass(frozen=True, slots=True)
class ProviderAccount:
    """Account at the identity provider by which a user signed in."""

    subject: str
    """The provider's id of the person."""
    refresh_token: str = ""
    """Token that the provider exchanges for news of the account; empty if it gave none."""


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """Session of a browser, as its cookie holds it."""

    session_id: str
    """Random id of 32 hex digits."""
    user: ConsoleUser | None
    """Signed-in user; None before signing in."""
    until_s: int
    """Expiry by wall clock, seconds since 1970 UTC."""
    account: ProviderAccount | None = None
    """Account at the identity provider; None for development users, and before signing in."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Attempt to sign in at the identity provider: three random values, which only this browser's cookie holds."""

    state: str
    """Value that the provider returns in the address, as proof that the answer belongs to this browser's request."""
    nonce: str
    """Value that the provider returns in the token, as proof that the token was made for this attempt."""
    verifier: str
    """PKCE code verifier: without it, nobody can use the authorization code."""


class SignedCookies:
    """Makes and reads the console's cookies and tokens with its keys."""

    def __init__(self, keys: Sequence[bytes], issuer: str) -> None:
        """The last of `keys` signs, and all of them verify, so that a key can be replaced without ending sessions.

        `issuer` is the identity provider that authenticates users; empty for development users. Cookies of another issuer aren't valid.
        """
        self._sessions = _serializer(keys, "session", issuer)
        self._attempts = _serializer(keys, "attempt", issuer)
        # The refresh token is a secret, also from this browser's users: it is encrypted, not only signed.
        self._encryption_keys = [_encryption_key(key, issuer) for key in keys]
        self._tokens = Signer(keys, salt=_salt("token", issuer), **_HMAC_SHA256)

    def seal(self, session: ConsoleSession) -> str:
        """Returns the cookie of a session, signed now."""
        user = session.user
        content = {
            "id": session.session_id,
            "role": user.role.value if user else "",
            "name": user.name if user else "",
            "until": str(session.until_s),
        }
        if session.account:
            secret = f"{session.account.refresh_token}\n{session.account.subject}".encode()
            content["account"] = jwe.encrypt_compact(_ENCRYPTION, secret, self._encryption_keys[-1])
        return self._sessions.dumps(content)

    def unseal(self, cookie: str, now_s: float) -> ConsoleSession | None:
        """Returns the session of a cookie; None if the cookie isn't valid or has expired."""
        signed = _read(self._sessions, cookie)
        if signed is None:
            return None
        content = signed.content
        until_s = int(content.get("until", 0))  # a cookie of a version that kept no end is over
        if until_s <= now_s:
            return None
        user = ConsoleUser(Role(content["role"]), content["name"]) if content["role"] else None
        account = self._decrypted(content["account"]) if "account" in content else None
        return ConsoleSession(content["id"], user, until_s, account=account)

    def _decrypted(self, secret: str) -> ProviderAccount | None:
        for key in self._encryption_keys:
            try:
                text = (jwe.decrypt_compact(secret, key).plaintext or b"").decode()
            except JoseError:
                continue
            refresh_token, _, subject = text.partition("\n")
            return ProviderAccount(subject, refresh_token)
        return None

    def seal_attempt(self, attempt: Attempt) -> str:
        """Returns the cookie of an attempt that begins now."""
        return self._attempts.dumps(asdict(attempt))

    def unseal_attempt(self, cookie: str, now_s: float) -> Attempt | None:
        """Returns the attempt of a cookie; None if the cookie isn't valid or has expired."""
        signed = _read(self._attempts, cookie)
        if signed is None or signed.at_s + ATTEMPT_LASTS_S <= now_s:
            return None
        return Attempt(**signed.content)

    def token_of(self, session: ConsoleSession) -> str:
        """Returns the token that a page of this session sends with each POST. Another site's page can't know this token."""
        return self._tokens.get_signature(session.session_id).decode()

    def is_token(self, session: ConsoleSession, token: str) -> bool:
        """Returns whether `token` belongs to the session."""
        return self._tokens.verify_signature(session.session_id, token.encode(errors="replace"))


def new_session(
    user: ConsoleUser | None, now_s: float, *, account: ProviderAccount | None = None, until_s: int | None = None
) -> ConsoleSession:
    """Makes a session of a user, or an anonymous one. A new id at each sign-in prevents session fixation.

    It lasts a shift, or until `until_s`, seconds since 1970 UTC, if that is sooner.
    """
    shift_ends_s = int(now_s) + LASTS_S
    until_s = shift_ends_s if until_s is None else min(until_s, shift_ends_s)
    return ConsoleSession(secrets.token_hex(16), user, until_s, account=account)


def new_attempt() -> Attempt:
    """Makes an attempt with new random values."""
    return Attempt(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))


def is_same(text: str, other: str) -> bool:
    """Compares two secrets in constant time."""
    return hmac.compare_digest(text.encode(errors="replace"), other.encode(errors="replace"))


def user_of(role: str, name: str) -> ConsoleUser | None:
    """Returns the user with this role and name; None if either is invalid."""
    if role not in set(Role) or not NAME.fullmatch(name) or name == SELF:
        return None
    return ConsoleUser(Role(role), name)


class _Signed(NamedTuple):
    content: dict[str, str]
    at_s: int
    """Time of signing by wall clock, seconds since 1970 UTC."""


def _read(serializer: URLSafeTimedSerializer, cookie: str) -> _Signed | None:
    """Returns the content of a signed cookie, however old; None if its signature isn't valid."""
    try:
        # No max_age: it would refuse a signature from the future, and another replica's clock may be a little ahead.
        content, signed_at = serializer.loads(cookie.encode(errors="replace"), return_timestamp=True)
    except BadData:
        return None
    return _Signed(content, int(signed_at.timestamp()))


def _serializer(keys: Sequence[bytes], purpose: str, issuer: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(keys, salt=_salt(purpose, issuer), signer_kwargs=_HMAC_SHA256)


_ENCRYPTION = {"alg": "dir", "enc": "A256GCM"}


def _encryption_key(key: bytes, issuer: str) -> OctKey:
    return OctKey.import_key(hmac.digest(key, _salt("refresh token", issuer), "sha256"))


def _salt(purpose: str, issuer: str) -> bytes:
    return f"tandem console {purpose}\n{issuer}".encode()


class EndedSessions:
    """Ended sessions, also kept in a file if a path is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._until_s: dict[str, int] = {}
        """Expiry of each ended session, in s since 1970 UTC, by session id."""
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Loads the sessions that were ended before a restart. Raises ValueError if the file has another format."""
        if self._path and self._path.exists():
            content = json.loads(self._path.read_text())
            if not isinstance(content, dict) or not all(isinstance(until_s, int) for until_s in content.values()):
                raise ValueError(
                    f"{self._path} is not a list of ended sessions (session id -> seconds since 1970): remove it "
                    "and session.key, so that no ended session is valid; everybody signs in again"
                )
            self._until_s = content

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._until_s

    async def add(self, session_id: str, until_s: int) -> None:
        """Ends a session at once. If the file can't be written, logs a warning; the session then stays ended until a restart."""
        now_s = time.time()
        self._until_s = {id_: at_s for id_, at_s in self._until_s.items() if at_s > now_s} | {session_id: until_s}
        if self._path is None:
            return
        async with self._writing:
            try:
                await asyncio.to_thread(stored_files.write, self._path, json.dumps(self._until_s).encode())
            except OSError as error:
                logger().warning("ended_session_not_kept", error=error.strerror)
