"""Fuzz tests of what field serves to the internet: rubbish at each route of both apps, with and without a phone's cookie and proof.

A running field answers each request in words, and never with an error of its own. `make fuzz-field` runs it for minutes, `make test`
sends the same few hundred requests each time.
"""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidField
from services.common.privacy.secret_keys import open_keys
from services.field import guard, units
from services.field.credentials import PhoneCookies, PhoneSession, UnitCookies, UnitSession
from tests.support.field.alone import running_field
from tests.support.field.phone import PhoneClient

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""Duration for all targets together, seconds. If 0, the default, each target gets one round of the same examples."""
ROUTES = (
    *(
        ("GET", path)
        for path in ("/", "/unit", "/unit/", "/unit/service-worker.js", "/static/app.js", "/static/unit-ko.json")
    ),
    *(
        ("GET", f"/api/{path}")
        for path in ("notices", "push", "map", "afterwards", "unit/duty", "unit/targets", "unit/push")
    ),
    *(("POST", f"/api/{path}") for path in ("enrol", "reports", "health", "way-out", "receipts", "push", "leave")),
    *(("POST", f"/api/unit/{path}") for path in ("sign-in", "report", "answer", "distress", "push", "leave")),
)
IN_WORDS = {200, 302, 400, 401, 403, 404, 405, 409, 413, 415, 429, 503}
"""Statuses of field's answers. 503 says that a part of the mesh is away, as here all are."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    1 << 70,
    1.5,
    float("nan"),
    "",
    "police.x",
    "assign-1",
    "\ud800",
    "경찰",
    "a" * 300,
    [],
    {},
    [1],
    {"a": {}},
)
NAMES = (
    *("code", "key", "reports", "notice", "kind", "choice", "endpoint", "p256dh", "auth", "id", "at_ms"),
    *("status", "lat", "lon", "assignment", "offer", "answer", "reason", "cause", "note", "shown", "known"),
    *("location", "screen", "age_s", "battery", "accuracy", "direction"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=12,
)


def test_what_a_units_page_sends_is_read_or_refused_with_its_field() -> None:
    def check(content: Any) -> None:
        for read in (lambda: units.parse_answer("token", content), lambda: units.parse_report("token", content, 1_000)):
            with suppress(InvalidField):
                read().SerializeToString()
        with suppress(InvalidField):
            units.parse_shown(str(content))

    made = settings(
        max_examples=300, deadline=None, derandomize=not SECONDS, database=None, suppress_health_check=list(HealthCheck)
    )(given(JSON)(check))
    until_s = time.monotonic() + SECONDS / 4
    made()
    while time.monotonic() < until_s:
        made()


def test_made_up_cookies_open_no_page_and_hers_is_no_units() -> None:
    cookies, hers = UnitCookies([bytes(32)]), PhoneCookies([bytes(32)])
    session = UnitSession("police", "car-1", "token", "key")
    assert cookies.open(cookies.seal(session)) == session and hers.open(cookies.seal(session)) is None
    assert cookies.open(hers.seal(PhoneSession("phone-1", "person-1", "token", "key"))) is None
    dice = random.Random(7)
    sealed = cookies.seal(session)
    for _ in range(200):
        at = dice.randrange(len(sealed))
        assert cookies.open(sealed[:at] + dice.choice("AZaz09-_=") + sealed[at + 1 :]) in (None, session)


async def test_each_route_answers_rubbish_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS_PER_S", "PHONE_PER_S", "CODE_PER_S", "UNIT_PAGE_PER_S", "LINK_PER_S"):
        monkeypatch.setattr(guard, name, 1e9)  # the limits are tested elsewhere
    dice, statuses = random.Random(None if SECONDS else 11), set[int]()
    async with running_field(tmp_path) as url, aiohttp.ClientSession() as session:
        keys, phone = open_keys(tmp_path / "cookies.key"), PhoneClient(url, session)
        unit = UnitCookies(keys).seal(UnitSession("police", "car-1", "token", phone.public))
        hers = PhoneCookies(keys).seal(PhoneSession("phone-1", "person-1", "token", phone.public))
        until_s = time.monotonic() + SECONDS * 3 / 4
        sent = 0
        while sent < 400 or time.monotonic() < until_s:
            sent += 1
            method, path, body, headers = made_up(dice, phone, f"unit={unit}; app={hers}")
            try:
                async with session.request(
                    method,
                    url + path,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(60),
                ) as answer:
                    statuses.add(answer.status)
                    assert answer.status in IN_WORDS, (method, path, body, answer.status)
                    assert "Traceback" not in await answer.text()
            except ValueError:
                continue  # the client itself refuses the header
    assert {400, 401, 403, 404, 503} <= statuses


def made_up(dice: random.Random, phone: PhoneClient, cookies: str) -> tuple[str, str, bytes, dict[str, str]]:
    """A request of rubbish. Most have a right cookie and proof, since what is behind these is the interesting part."""
    method, path = dice.choice(ROUTES)
    if method == "GET" and dice.random() < 0.5:
        query = "&".join(f"{dice.choice(NAMES)}={dice.choice(('1', 'a,b', '%00', '%ff', 'x' * 40))}" for _ in range(3))
        path += f"?wait=0&{query}"
    if dice.random() < 0.05:
        path += dice.choice(("/..", "/x", "%2f", ";a", "/%00"))
    body = b""
    if method == "POST":
        content = {dice.choice(NAMES): dice.choice(VALUES) for _ in range(dice.randrange(6))}
        if "reports" in content or dice.random() < 0.2:
            content["reports"] = [{dice.choice(NAMES): dice.choice(VALUES) for _ in range(4)}]
        body = json.dumps(content).encode("utf-8", "surrogatepass")
        if dice.random() < 0.2:
            body = dice.randbytes(dice.randrange(200))
    headers = {"Origin": phone.url, "Content-Type": "application/json", "Cookie": cookies}
    headers["X-Proof"] = phone.proof(method, path, body)
    for name in ("Origin", "Content-Type", "Cookie", "X-Proof"):
        if dice.random() < 0.08:
            headers[name] = dice.choice(
                ("", "x", "https://elsewhere.example", "https://[", "text/plain", "0.", "9" * 40 + ".AA", "unit=x")
            )
    return method, path, body, headers
