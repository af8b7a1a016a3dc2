"""Signed cookies of the console: sessions, sign-in attempts and tokens against forged requests."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from aiohttp import web
from itsdangerous import TimestampSigner, URLSafeTimedSerializer

from services.common.privacy.secret_keys import KEY_BYTES
from services.console.domain.people import ConsoleUser, Role
from services.console.pages.guard import RouteGuard
from services.console.settings import ConsoleSettings
from services.console.sign_in import sessions
from services.console.sign_in.sessions import (
    ATTEMPT_LASTS_S,
    LASTS_S,
    ProviderAccount,
    SignedCookies,
    new_attempt,
    new_session,
)

OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES
ISSUER = "https://id.example/realms/npa"
USER = ConsoleUser(Role.POLICE, "duty-1")
COOKIES = SignedCookies([OLD], ISSUER)
RUBBISH = ("", ".", "..", "a.b.c", "é.é", "\udce9.\udce9", "." * 4_000)
BASE_64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def changed(text: str, at: int) -> str:
    """Changes the highest bit of a character in base64, as the lowest bits of the last one are unused; and a dot to a letter."""
    other = BASE_64[(BASE_64.index(text[at]) + 32) % 64] if text[at] in BASE_64 else "A"
    return text[:at] + other + text[at + 1 :]


def session_id(cookies: SignedCookies, cookie: str) -> str | None:
    session = cookies.unseal(cookie, time.time())
    return session.session_id if session else None


# ── sessions ──


@pytest.mark.parametrize("user", [USER, None])
def test_a_cookie_holds_its_session_until_it_expires(user: ConsoleUser | None) -> None:
    now_s = time.time()
    session = new_session(user, now_s)
    cookie = COOKIES.seal(session)
    read = COOKIES.unseal(cookie, now_s)
    assert read is not None and (read.session_id, read.user) == (session.session_id, user)
    assert read.until_s == session.until_s
    assert COOKIES.unseal(cookie, read.until_s - 1) == read
    assert COOKIES.unseal(cookie, read.until_s) is None
    assert abs(read.until_s - now_s - LASTS_S) <= 2


def test_a_refresh_token_is_unreadable_in_the_cookie_and_read_back_with_a_replaced_key() -> None:
    account = ProviderAccount("4711", "refresh-token-of-kim")
    cookie = COOKIES.seal(new_session(USER, time.time(), account=account))
    payload = URLSafeTimedSerializer(OLD).load_payload(cookie.rsplit(".", 2)[0].encode())
    assert account.refresh_token not in str(payload) and account.subject not in str(payload)
    for keys in ([OLD], [OLD, NEW]):
        read = SignedCookies(keys, ISSUER).unseal(cookie, time.time())
        assert read is not None and read.account == account


def test_a_session_ends_earlier_where_its_proof_does_and_never_later_than_a_shift() -> None:
    now_s = int(time.time())
    assert new_session(USER, now_s, until_s=now_s + 60).until_s == now_s + 60
    assert new_session(USER, now_s, until_s=now_s + 10 * LASTS_S).until_s == now_s + LASTS_S


def test_a_cookie_with_a_changed_character_is_refused() -> None:
    cookie = COOKIES.seal(new_session(USER, time.time()))
    assert session_id(COOKIES, cookie)
    for at in range(len(cookie)):
        assert session_id(COOKIES, changed(cookie, at)) is None, at
    payload, signed_at, signature = cookie.rsplit(".", 2)
    for forged in (f"{payload}.{signature}", f"{payload}.{signed_at}", f"{payload}.{signed_at}.", f"{cookie}."):
        assert session_id(COOKIES, forged) is None, forged


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_is_no_cookie(rubbish: str) -> None:
    assert COOKIES.unseal(rubbish, 0.0) is None
    assert COOKIES.unseal_attempt(rubbish, 0.0) is None
    assert not COOKIES.is_token(new_session(USER, 0.0), rubbish)


def test_a_cookie_of_one_purpose_is_none_of_another() -> None:
    session, now_s = new_session(USER, time.time()), time.time()
    assert COOKIES.unseal_attempt(COOKIES.seal(session), now_s) is None
    assert COOKIES.unseal(COOKIES.seal_attempt(new_attempt()), now_s) is None
    token = COOKIES.token_of(session)
    assert not COOKIES.is_token(session, COOKIES.seal(session).rpartition(".")[2])
    assert COOKIES.unseal(f"{session.session_id}.{token}", now_s) is None


def test_a_cookie_ends_with_its_identity_provider() -> None:
    cookie = COOKIES.seal(new_session(USER, time.time()))
    for issuer in ("", "https://id.example/realms/moj"):
        assert session_id(SignedCookies([OLD], issuer), cookie) is None


def test_a_cookie_of_a_replica_whose_clock_is_ahead_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_s = int(time.time()) + 5
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda _: ahead_s)
        cookie = COOKIES.seal(new_session(USER, ahead_s))
    assert session_id(COOKIES, cookie)


def test_an_unknown_role_or_a_bad_name_gives_no_user() -> None:
    assert sessions.user_of("police", "duty-1") == USER
    assert sessions.user_of("police", "../watch/x") is None
    assert sessions.user_of("police", "console") is None
    assert sessions.user_of("watch", "x") is None


# ── tokens ──


def test_a_token_is_valid_for_its_own_session_only() -> None:
    session, other = new_session(USER, time.time()), new_session(USER, time.time())
    token = COOKIES.token_of(session)
    assert COOKIES.is_token(session, token)
    assert not COOKIES.is_token(other, token)
    for wrong in ("", "é", changed(token, 0), token[:-1], token * 2):
        assert not COOKIES.is_token(session, wrong), wrong


# ── attempts to sign in ──


def test_an_attempt_is_valid_in_its_browser_for_ten_minutes() -> None:
    attempt, now_s = new_attempt(), time.time()
    cookie = COOKIES.seal_attempt(attempt)
    assert COOKIES.unseal_attempt(cookie, now_s) == attempt
    assert COOKIES.unseal_attempt(cookie, now_s + ATTEMPT_LASTS_S - 1) == attempt
    assert COOKIES.unseal_attempt(cookie, now_s + ATTEMPT_LASTS_S + 1) is None
    for at in range(len(cookie)):
        assert COOKIES.unseal_attempt(changed(cookie, at), now_s) is None, at


def test_the_values_of_an_attempt_are_its_own_and_cannot_be_guessed() -> None:
    attempts = [new_attempt() for _ in range(3)]
    values = [value for attempt in attempts for value in (attempt.state, attempt.nonce, attempt.verifier)]
    assert len(set(values)) == 9 and all(len(value) >= 43 for value in values), "256 bits, as PKCE asks for, too"


# ── keys ──


def test_a_replaced_key_ends_no_session_as_long_as_it_is_kept() -> None:
    before, meanwhile, after = (SignedCookies(keys, ISSUER) for keys in ([OLD], [OLD, NEW], [NEW]))
    session = new_session(USER, time.time())
    old, new = before.seal(session), meanwhile.seal(session)
    assert [session_id(cookies, old) for cookies in (before, meanwhile, after)] == [session.session_id] * 2 + [None]
    assert [session_id(cookies, new) for cookies in (before, meanwhile, after)] == [None] + [session.session_id] * 2
    assert meanwhile.is_token(session, before.token_of(session)) and not after.is_token(
        session, before.token_of(session)
    )
    known = SignedCookies([NEW, OLD], ISSUER)
    assert session_id(before, known.seal(session)), "the first key only verifies, so replicas can learn it one by one"
    assert session_id(known, new)


# ── flags ──


@pytest.mark.parametrize("tls", [False, True])
def test_cookies_are_hidden_from_scripts_and_other_sites_and_with_certificates_from_plain_http(tls: bool) -> None:
    files = {name: Path(name) for name in ("tls_cert", "tls_key", "tls_ca", "http_tls_cert", "http_tls_key")}
    settings = ConsoleSettings(**files, console_role="police") if tls else ConsoleSettings(dev_secret="x")  # type: ignore[arg-type]
    guard, response = RouteGuard(settings, [OLD]), web.Response()
    guard.signed_in(USER, response)
    guard.attempt_begun(new_attempt(), response)
    session, attempt = (response.cookies[name] for name in (sessions.COOKIE, sessions.ATTEMPT_COOKIE))
    for cookie in (session, attempt):
        assert cookie["httponly"] and bool(cookie["secure"]) is tls and not cookie["domain"]
    assert (session["samesite"], session["path"], session["max-age"]) == ("Strict", "/", str(LASTS_S))
    assert (attempt["samesite"], attempt["path"], attempt["max-age"]) == (
        "Lax",
        sessions.CALLBACK,
        str(ATTEMPT_LASTS_S),
    )
