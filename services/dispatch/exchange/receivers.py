"""Who gets a leg's steps by webhook, from a file of its own: it holds keys."""

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
KEY_LEAST_BYTES = 32
FORMS = ("step", "cap", "eido")
DEADLINE_S = 3_600.0
_NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Receiver:
    """One receiver."""

    name: str
    url: str
    keys: tuple[bytes, ...] = field(repr=False)
    """One, or two while they are being changed: each message is signed with both."""
    deadline_s: float
    """How long a message is tried, wall time; then an alarm."""
    form: str
    """One of FORMS: the step itself, or the leg's half of the incident as CAP or as JSON in EIDO's style."""
    links: bool
    """It sends text messages to those on the road: offers carry a link with which they are taken."""


def read(path: Path) -> tuple[Receiver, ...]:
    """The receivers in a file: a list of objects with name, url, keys (hex) and perhaps deadline_s, form, links.

    Raises FailedPrecondition where one can't be used; its keys are never repeated.
    """
    try:
        told = json.loads(path.read_text())
        receivers = tuple(_receiver(one) for one in told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise FailedPrecondition(f"{path.name} isn't a list of receivers: {reason}") from None
    if len({receiver.name for receiver in receivers}) < len(receivers):
        raise FailedPrecondition(f"{path.name} names a receiver twice")
    return receivers


def _receiver(told: dict[str, Any]) -> Receiver:
    name, url = str(told["name"]), str(told["url"])
    if not _NAME.fullmatch(name):
        raise ValueError("a name must be 1 to 32 characters of a-z 0-9 -")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"{name} isn't reached by https")
    try:
        keys = tuple(bytes.fromhex(key) for key in told["keys"])
    except ValueError:
        keys = ()
    if not 1 <= len(keys) <= MAX_KEYS or any(len(key) < KEY_LEAST_BYTES for key in keys):
        raise ValueError(f"{name} needs 1 or 2 keys of at least {2 * KEY_LEAST_BYTES} hex digits")
    deadline_s = float(told.get("deadline_s", DEADLINE_S))
    if not 0 < deadline_s <= 7 * 86_400:
        raise ValueError(f"{name} has a deadline that isn't within 7 days")
    form = str(told.get("form", "step"))
    if form not in FORMS:
        raise ValueError(f"{name} must get one of {', '.join(FORMS)}")
    return Receiver(name, url, keys, deadline_s, form, bool(told.get("links", False)))
