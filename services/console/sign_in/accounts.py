"""Checks with the identity provider, while users are signed in, that their accounts are open and still have the same role.

A session that this process knows is checked in the background, so that no page waits for the provider. Only a session that it doesn't
know, after a restart or at another replica, is checked before its page is shown.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.common.observability.telemetry import logger
from services.console.domain.claims import NotAllowed, Rule, user_of
from services.console.sign_in.ended_sessions import Ended
from services.console.sign_in.oidc import GrantEnded, Provider, ProviderAway, TokenRefused
from services.console.sign_in.sessions import ConsoleSession

TICK_S = 1.0
RETRY_S = 15.0
"""Interval of checks while the provider is unavailable, in s. Sessions stay meanwhile."""
CONCURRENCY = 8


class AccountEnd(StrEnum):
    """Reason why the provider's answer ended a session. The text of the sign-in page is `ended_` and the value."""

    CLOSED = "closed"
    ROLE_CHANGED = "role_changed"


@dataclass(slots=True)
class _Watched:
    session: ConsoleSession
    refresh_token: str
    check_at_s: float
    """Time of the next check, seconds since 1970 UTC."""
    seen_at_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Accounts:
    """Accounts of the sessions that have a refresh token."""

    def __init__(self, provider: Provider, rule: Rule, interval_s: float, *, ended: Ended) -> None:
        self._provider, self._rule, self._interval_s, self._ended = provider, rule, interval_s, ended
        self._watched: dict[str, _Watched] = {}
        self._ends: dict[str, tuple[AccountEnd, int]] = {}
        """Reason of each session's end, and until when it is kept, by session id."""

    def began(self, session: ConsoleSession) -> None:
        """Notes a session whose account was checked just now, by signing in."""
        self._watch(session, time.time() + self._interval_s)

    def seen(self, session: ConsoleSession) -> None:
        """Notes that a session is in use. One that nobody uses isn't checked before its next request."""
        if watched := self._watched.get(session.session_id):
            watched.seen_at_s = time.time()

    async def check(self, session: ConsoleSession) -> None:
        """Checks the account of a session that this process doesn't know, or that nobody used for a while; else notes its use."""
        if not (session.account and session.account.refresh_token) or session.session_id in self._ended:
            return
        watched = self._watched.get(session.session_id) or self._watch(session, 0.0)
        was_idle = self._is_idle(watched, time.time())
        watched.seen_at_s = time.time()
        if was_idle or not watched.check_at_s:
            await self._check(watched)

    def end_of(self, session_id: str) -> AccountEnd | None:
        """Returns the reason why a session ended; None if the provider didn't end it."""
        end = self._ends.get(session_id)
        return end[0] if end else None

    def current(self, session: ConsoleSession) -> ConsoleSession:
        """Returns the session with the newest refresh token, as providers may replace it at each use."""
        watched = self._watched.get(session.session_id)
        if watched is None or session.account is None:
            return session
        return replace(session, account=replace(session.account, refresh_token=watched.refresh_token))

    async def revoke(self, session: ConsoleSession) -> None:
        """Ends the grant of a session at the provider after signing out. If the provider is unavailable, only logs that."""
        watched = self._watched.pop(session.session_id, None)
        token = watched.refresh_token if watched else session.account.refresh_token if session.account else ""
        if not token:
            return
        try:
            await self._provider.revoke(token)
        except ProviderAway as error:
            logger().warning("grant_not_revoked", detail=str(error))

    async def run(self) -> None:
        """Checks the accounts of all sessions in use until cancelled."""
        limit = asyncio.Semaphore(CONCURRENCY)

        async def check(watched: _Watched) -> None:
            async with limit:
                await self._check(watched)

        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.time()
            self._forget_over(now_s)
            async with asyncio.TaskGroup() as tasks:
                for watched in list(self._watched.values()):
                    if watched.check_at_s <= now_s and not self._is_idle(watched, now_s):
                        tasks.create_task(check(watched))

    def _watch(self, session: ConsoleSession, check_at_s: float) -> _Watched:
        token = session.account.refresh_token if session.account else ""
        watched = _Watched(session, token, check_at_s=check_at_s, seen_at_s=time.time())
        if token:
            self._watched[session.session_id] = watched
        return watched

    def _is_idle(self, watched: _Watched, now_s: float) -> bool:
        return watched.seen_at_s + 2 * self._interval_s + RETRY_S <= now_s

    def _forget_over(self, now_s: float) -> None:
        # An idle session is kept: its refresh token may be newer than the one in its cookie.
        self._watched = {id_: watched for id_, watched in self._watched.items() if watched.session.until_s > now_s}
        self._ends = {id_: end for id_, end in self._ends.items() if end[1] > now_s}

    async def _check(self, watched: _Watched) -> None:
        """Checks an account if that is due. While the provider is unavailable, the session stays."""
        async with watched.lock:
            if watched.check_at_s > time.time():
                return
            try:
                end = await self._end(watched)
            except ProviderAway as error:
                logger().warning("account_not_checked", detail=str(error))
                watched.check_at_s = time.time() + RETRY_S
                return
            watched.check_at_s = time.time() + self._interval_s
            if end is None:
                return
            session = watched.session
            logger().warning("session_ended_by_provider", reason=end.value)
            self._ends[session.session_id] = (end, session.until_s)
            self._watched.pop(session.session_id, None)
            await self._ended.add(session.session_id, session.until_s)

    async def _end(self, watched: _Watched) -> AccountEnd | None:
        """Asks the provider. Returns the reason why the session must end, or None. Raises ProviderAway."""
        try:
            grant = await self._provider.refresh(watched.refresh_token, time.time())
        except (GrantEnded, TokenRefused):
            return AccountEnd.CLOSED
        watched.refresh_token = grant.refresh_token
        if grant.claims is None:
            return None
        account = watched.session.account
        if account is None or grant.claims["sub"] != account.subject:
            return AccountEnd.CLOSED
        try:
            user = user_of(grant.claims, self._rule)
        except NotAllowed:
            return AccountEnd.ROLE_CHANGED
        signed_in = watched.session.user
        return None if signed_in is None or user.role is signed_in.role else AccountEnd.ROLE_CHANGED
