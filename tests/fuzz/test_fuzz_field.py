"""Fuzz tests of what a phone sends to field: reports, push addresses, proofs and cookies, which must be accepted or refused in words.

`make fuzz` runs them for minutes, `make test` runs the same few examples each time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidField
from services.field import credentials, domain, views
from services.field.credentials import PhoneCookies
from services.field.domain import DEFAULT_PUSH_SERVICES, check_endpoint
from services.ingest.endpoints import phones

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""Duration for all targets together, seconds. If 0, the default, each target gets one round of the same two hundred examples."""
COOKIES = PhoneCookies([bytes(range(32))])
HOSTS = st.sampled_from(
    ["fcm.googleapis.com", "x.push.apple.com", "10.0.0.1", "[::1]", "evil.example", "localhost", "0x7f.1"]
)
PIECES = st.sampled_from(["https://", "http://", "//", "@", ":", "443", "/", "\\", "#", "?", "\t", "%2f", ".", "경"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("id", "at_ms", "lat", "lon", "accuracy", "battery", "alarm")
REPORT = st.dictionaries(
    st.sampled_from(FIELDS), JSON | st.just("panic") | st.floats(-200, 200) | st.integers(0, 1 << 60)
)


def fuzzed(check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Runs a check on many examples, for its share of SECONDS."""
    run = settings(
        max_examples=200, deadline=None, derandomize=not SECONDS, database=None, suppress_health_check=list(HealthCheck)
    )(given(*strategies)(check))
    until_s = time.monotonic() + SECONDS / 4
    cast(Callable[[], None], run)()
    while time.monotonic() < until_s:
        cast(Callable[[], None], run)()


def test_reports_are_read_or_refused_with_the_field() -> None:
    def check(content: Any) -> None:
        try:
            parsed = domain.parse_reports(content)
        except InvalidField as error:
            assert error.field.startswith("reports")
            return
        for report in parsed:
            form = report.form("phone-1")
            assert phones.parse_osmand(form, 1_795_603_655_000).device_id == "phone-1"

    fuzzed(check, JSON | st.fixed_dictionaries({"reports": st.lists(REPORT, max_size=3) | JSON}))


def test_no_address_but_a_known_push_services_is_called() -> None:
    def check(pieces: list[str]) -> None:
        try:
            endpoint = check_endpoint("".join(pieces), DEFAULT_PUSH_SERVICES)
        except InvalidField:
            return
        host = urlsplit(endpoint).hostname or ""
        assert host == "fcm.googleapis.com" or host.endswith(".push.apple.com")
        assert endpoint.startswith("https://") and "\\" not in urlsplit(endpoint).netloc

    fuzzed(check, st.lists(PIECES | HOSTS | st.text(max_size=3), max_size=8))


def test_made_up_proofs_and_cookies_open_nothing() -> None:
    def check(header: str, key: str, cookie: str) -> None:
        given = credentials.parse_proof(header) or credentials.parse_proof(f"5.AAECAwQFBgcICQoLDA0ODw.{header}")
        assert given is None or (0 <= given.at_ms < 10**15 and not given.is_valid(key, b"signed"))
        assert COOKIES.open(cookie) is None

    fuzzed(check, st.text(max_size=120), st.text(max_size=100), st.text(max_size=200))


def test_what_an_app_says_of_its_phone_is_read_or_refused_with_its_field() -> None:
    words = st.sampled_from([*views.LOCATIONS, *views.SCREENS, "locked", ""])
    stated = st.fixed_dictionaries(
        {"location": words | JSON, "screen": words | JSON, "age_s": st.integers(-5, 100_000) | JSON}
    )

    def check(content: Any) -> None:
        try:
            parsed = views.parse_health(content)
        except InvalidField as error:
            assert error.field in ("location", "screen", "age_s")
            return
        assert 0 <= parsed.age_s <= views.MAX_AGE_S and parsed.screen

    fuzzed(check, JSON | stated)
