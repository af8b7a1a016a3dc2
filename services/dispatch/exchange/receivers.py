"""Reads the receivers of webhooks from a file. It is a separate file because it holds keys."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.common.rpc.errors import FailedPrecondition
from services.common.settings import LOOPBACK

MAX_KEYS = 2
MIN_KEY_BYTES = 32
FORMS = ("step", "cap", "eido")
DEADLINE_S = 3_600.0
"""Default of `deadline_s`."""
_NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver of webhooks."""

    name: str
    url: str
    keys: tuple[bytes, ...] = field(repr=False)
    """One key, or two during a key rotation: each message is signed with both."""
    deadline_s: float
    """Time during which a message is retried, seconds of wall time; after that an alarm is raised."""
    form: str
    """Form of the body, one of FORMS: the step, or the leg's half of the incident as CAP or as JSON in EIDO's style."""
    links: bool
    """Whether offers carry a link that accepts them, for a receiver that sends text messages to units on the road."""


def read(path: Path) -> tuple[Receiver, ...]:
    """Reads a file of receivers: a JSON list of objects with name, url, keys (hex) and optionally deadline_s, form, links.

    Raises FailedPrecondition if one can't be used. The error never contains keys.
    """
    try:
        records = json.loads(path.read_text())
        receivers = tuple(_receiver(record) for record in records)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise FailedPrecondition(f"{path.name} isn't a list of receivers: {reason}") from None
    if len({receiver.name for receiver in receivers}) < len(receivers):
        raise FailedPrecondition(f"{path.name} has two receivers with the same name")
    return receivers


def _receiver(record: dict[str, Any]) -> Receiver:
    name, url = str(record["name"]), str(record["url"])
    if not _NAME.fullmatch(name):
        raise ValueError("name: must be 1 to 32 characters of a-z 0-9 - (example: cad-seoul)")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"{name}: url must begin with https:// (http:// only on loopback)")
    try:
        keys = tuple(bytes.fromhex(key) for key in record["keys"])
    except ValueError:
        keys = ()
    if not 1 <= len(keys) <= MAX_KEYS or any(len(key) < MIN_KEY_BYTES for key in keys):
        raise ValueError(f"{name}: keys must hold 1 or 2 keys of at least {2 * MIN_KEY_BYTES} hex digits")
    deadline_s = float(record.get("deadline_s", DEADLINE_S))
    if not 0 < deadline_s <= 7 * 86_400:
        raise ValueError(f"{name}: deadline_s must be above 0 and at most 604800 (7 days)")
    form = str(record.get("form", "step"))
    if form not in FORMS:
        raise ValueError(f"{name}: form must be one of {', '.join(FORMS)}")
    return Receiver(
        name=name, url=url, keys=keys, deadline_s=deadline_s, form=form, links=bool(record.get("links", False))
    )
