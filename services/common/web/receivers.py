"""Receivers of webhooks, and the posting of signed messages to them. The body of a response is neither read nor logged.

Receivers are read from a file of their own because it holds secrets.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from services.common.errors import FailedPrecondition
from services.common.privacy import secret_keys
from services.common.settings import LOOPBACK

MAX_SECRETS = 2
DEADLINE_S = 3_600.0
"""Default of `deadline_s`."""
MAX_DEADLINE_S = 7 * 86_400
_NAME = re.compile(r"[a-z0-9-]{1,32}")


class BodyForm(StrEnum):
    """Form of the body of a webhook."""

    STEP = "step"
    """The step as JSON."""
    EIDO = "eido"
    """The leg's half of the incident as JSON in EIDO's style."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver of webhooks."""

    name: str
    url: str
    secrets: tuple[bytes, ...] = field(repr=False)
    """One secret, or two during a rotation. Each message is signed with all of them."""
    deadline_s: float
    """Time for which a message is retried, seconds of wall time. After that the message is given up, and an alarm is raised."""
    form: BodyForm
    links: bool
    """Whether an offer carries a link that accepts it, for a receiver that sends text messages to units on the road."""


def read(path: Path) -> tuple[Receiver, ...]:
    """Reads a file of receivers: a JSON list of objects with name, url, secrets and optionally deadline_s, form, links.

    Raises OSError, and FailedPrecondition if a receiver can't be used. The error never contains secrets.
    """
    try:
        records = json.loads(path.read_text())
        receivers = tuple(_receiver(record) for record in records)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise FailedPrecondition(f"{path} isn't a list of receivers: {reason}") from None
    if len({receiver.name for receiver in receivers}) < len(receivers):
        raise FailedPrecondition(f"{path} has two receivers with the same name")
    return receivers


def _receiver(record: Mapping[str, Any]) -> Receiver:
    name = str(record["name"])
    if not _NAME.fullmatch(name):
        raise ValueError("name: must be 1 to 32 characters of a-z 0-9 - (example: cad-seoul)")
    try:
        return Receiver(
            name=name,
            url=_url(str(record["url"])),
            secrets=_secrets(record.get("secrets", ())),
            deadline_s=_deadline_s(float(record.get("deadline_s", DEADLINE_S))),
            form=_form(str(record.get("form", BodyForm.STEP))),
            links=bool(record.get("links", False)),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError("url must begin with https:// (http:// only on loopback)")
    return url


def _secrets(texts: Sequence[object]) -> tuple[bytes, ...]:
    if not 1 <= len(texts) <= MAX_SECRETS:
        raise ValueError(f"secrets must hold 1 or {MAX_SECRETS} secrets")
    try:
        return tuple(secret_keys.parse_secret(str(text)) for text in texts)
    except ValueError as error:
        raise ValueError(f"secrets: each {error}") from None


def _deadline_s(deadline_s: float) -> float:
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise ValueError("deadline_s must be above 0 and at most 604800 (7 days)")
    return deadline_s


def _form(text: str) -> BodyForm:
    try:
        return BodyForm(text)
    except ValueError:
        raise ValueError("form: must be step, or eido for the incident so far (example: eido)") from None


# ── posting ───────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=10.0, connect=5.0)


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Opens a session that uses no cookies and no proxy from the environment, so that messages reach only the receiver."""
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(
        timeout=REQUEST_TIMEOUT, trust_env=False, cookie_jar=jar, auto_decompress=False
    ) as session:
        yield session


async def post(
    session: aiohttp.ClientSession, receiver: Receiver, message_id: str, *, body: bytes, content_type: str
) -> str:
    """Posts a signed message. Returns the reason for the failure; empty on success."""
    headers = secret_keys.signed_headers(receiver.secrets, message_id, int(time.time()), body=body)
    try:
        async with session.post(
            receiver.url, data=body, headers=headers | {"Content-Type": content_type}, allow_redirects=False
        ) as answer:
            return "" if 200 <= answer.status < 300 else f"HTTP status {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__
