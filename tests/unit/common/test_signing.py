"""Webhook signatures: the reference library of Standard Webhooks verifies ours, and ours accepts the library's."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from services.common.privacy import secret_keys

SECRETS = st.binary(min_size=secret_keys.MIN_SECRET_BYTES, max_size=secret_keys.MAX_SECRET_BYTES)
IDS = st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)
# Lone surrogates stand for bytes that aren't UTF-8; only U+DC80 to U+DCFF can occur, and a test has one.
HEADERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=60)


def now_s() -> int:
    return int(datetime.now(UTC).timestamp())


def spelt(secret: bytes) -> str:
    return f"whsec_{base64.b64encode(secret).decode()}"


@given(st.lists(SECRETS, min_size=1, max_size=2, unique=True), IDS, st.text())
def test_the_library_verifies_with_any_of_the_secrets(secrets: list[bytes], id_: str, text: str) -> None:
    body = text.encode()
    headers = secret_keys.signed_headers(secrets, id_, now_s(), body=body)
    for secret in secrets:
        Webhook(spelt(secret)).verify(body, headers, json_parse=False)
    for forged in (headers | {"webhook-id": id_ + "x"}, headers | {"webhook-timestamp": str(now_s() + 7)}):
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            Webhook(spelt(secrets[0])).verify(body, forged, json_parse=False)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(spelt(secrets[0])).verify(body + b" ", headers, json_parse=False)


@given(st.lists(SECRETS, min_size=1, max_size=2, unique=True), IDS, st.text())
def test_a_signature_of_the_library_is_accepted_once_and_within_the_window(
    secrets: list[bytes], id_: str, text: str
) -> None:
    at = datetime(2026, 7, 6, tzinfo=UTC)
    at_s, body = int(at.timestamp()), text.encode()
    headers = {
        "webhook-id": id_,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1a,AAAA v0,x {Webhook(spelt(secrets[-1])).sign(id_, at, text)}",
    }
    assert secret_keys.is_genuine(secrets, headers, body, now_s=at_s)
    for apart_s in (-secret_keys.WINDOW_S, secret_keys.WINDOW_S):
        assert secret_keys.is_genuine(secrets, headers, body, now_s=at_s + apart_s)
    for apart_s in (-secret_keys.WINDOW_S - 1, secret_keys.WINDOW_S + 1):
        assert not secret_keys.is_genuine(secrets, headers, body, now_s=at_s + apart_s)
    assert not secret_keys.is_genuine(secrets, headers, body + b" ", now_s=at_s)
    assert not secret_keys.is_genuine(secrets, headers | {"webhook-id": id_ + "x"}, body, now_s=at_s)
    assert not secret_keys.is_genuine([b"another secret of 24 bytes"], headers, body, now_s=at_s)


@given(HEADERS, HEADERS, HEADERS, st.binary())
def test_no_header_of_a_stranger_is_an_error(id_: str, timestamp: str, signature: str, body: bytes) -> None:
    for stamp in (timestamp, "7", "nan", "٣", "9" * 13):
        headers = {"webhook-id": id_, "webhook-timestamp": stamp, "webhook-signature": signature}
        assert not secret_keys.is_genuine([bytes(32)], headers, body, now_s=7)
    # aiohttp gives bytes that aren't UTF-8 as lone surrogates.
    for header in ("webhook-id", "webhook-signature"):
        headers = {"webhook-id": "m", "webhook-timestamp": "7", "webhook-signature": "v1,", header: "\udc80"}
        assert not secret_keys.is_genuine([bytes(32)], headers, body, now_s=7)


@given(SECRETS)
def test_a_secret_is_parsed_as_the_standard_spells_it(secret: bytes) -> None:
    assert secret_keys.parse_secret(spelt(secret)) == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        spelt(bytes(23)),
        spelt(bytes(65)),
        base64.b64encode(bytes(32)).decode(),
        "whsec_secret-é",
        "00" * 32,
    ],
)
def test_any_other_secret_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="base64 of 24 to 64 bytes") as refused:
        secret_keys.parse_secret(text)
    assert not text.removeprefix("whsec_") or text.removeprefix("whsec_") not in str(refused.value)
