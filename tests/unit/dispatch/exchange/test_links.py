"""Tokens of links: the content of a token is parsed only after its MAC is verified."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest

from services.dispatch.exchange import links as exchange_links
from services.dispatch.exchange.links import InvalidLink, Links, Token

KEY = bytes(range(32))
LINKS = Links("police", KEY, "http://127.0.0.1:1")
TOKEN = Token("police", "assign-1", "car-7", 2_000, "nonce-1")
NOW_S = 1_000


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(content: bytes, key: bytes = KEY) -> str:
    mac = hmac.new(key, b"tandem link\n" + content, hashlib.sha256).digest()
    return f"{encoded(content)}.{encoded(mac)}"


def status_of(text: str) -> int:
    with pytest.raises(InvalidLink) as refused:
        LINKS.read(text, NOW_S)
    return refused.value.answer.status


def test_a_token_can_be_written_and_read_back() -> None:
    assert LINKS.read(LINKS.write(TOKEN), NOW_S) == TOKEN


def test_content_without_a_valid_mac_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    monkeypatch.setattr(json, "loads", parsed.append)
    for content in (b"[" * 1_000, b"{}", json.dumps({"leg": "police"}).encode()):
        assert status_of(f"{encoded(content)}.{encoded(bytes(32))}") == 403
        assert status_of(signed(content, bytes(32))) == 403
    assert parsed == []


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_400,
        b"1",
        b"{}",
        b'"text"',
        b"\xff",
        json.dumps({"leg": "police", "assignment_id": 1, "unit": [], "expires_s": "x", "nonce": None}).encode(),
    ],
)
def test_signed_content_that_is_no_token_is_refused(content: bytes) -> None:
    assert status_of(signed(content)) == 403


@pytest.mark.parametrize(
    "mangle",
    [
        lambda text: "",
        lambda text: ".",
        lambda text: "..",
        lambda text: text + ".x",
        lambda text: text + "=",
        lambda text: text + " ",
        lambda text: text.replace(".", "\n."),
        lambda text: text.replace(".", "!."),
        lambda text: "\u0661" + text,
        lambda text: "[" * 100_000 + text,
        lambda text: "W1tb" * 20_000 + "." + text.partition(".")[2],
    ],
)
def test_a_changed_token_is_refused(mangle: Callable[[str], str]) -> None:
    assert status_of(mangle(LINKS.write(TOKEN))) == 403


def test_the_longest_token_can_be_read() -> None:
    token = Token("probation", "a" * 128, "u" * 200, 2_000, "n" * 64)
    links = Links("probation", KEY, "http://127.0.0.1:1")
    text = links.write(token)
    assert len(text) < exchange_links.MAX_TOKEN_CHARS
    assert links.read(text, NOW_S) == token
