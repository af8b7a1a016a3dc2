"""What a phone may send: reports, as ingest's endpoint for phones takes them, and the address at which web push wakes it. Pure.

A phone names the address to which the server then posts, so a forged phone could have it post anywhere. Only known push services are
accepted, and of their addresses none within a private network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from services.common import fields
from services.common.errors import InvalidField

MAX_REPORTS = 50
"""Maximum number of reports in a request. A phone that was offline for longer sends several requests."""
MAX_ACCURACY_M = 1e6
"""Accuracy radius beyond which a whole request is refused, metres. Ingest refuses single reports from a smaller one on."""
ALARMS = {"panic": "sos", "battery_low": "lowBattery", "battery_charging": "powerRestored"}
"""Alarms of the app by the name that the OsmAnd protocol has for them (docs/reference/devices.md)."""
SOONEST_INTERVAL_S, LATEST_INTERVAL_S = 5, 300
"""Bounds of the interval that the app is asked to keep, seconds."""


class ReportOutcome(Enum):
    """Outcome of a report, by ingest's answer."""

    STORED = "stored"
    """It is durable in the log."""
    REFUSED = "refused"
    """It can never be accepted, so the phone forgets it."""
    LATER = "later"
    """The phone keeps it and sends it again."""
    UNKNOWN_PHONE = "unknown phone"
    """The phone's token has ended."""


@dataclass(frozen=True, slots=True)
class PhoneReport:
    """A report that a phone made: a position, or an alarm without one."""

    report_id: str
    """The phone's own id of the report, for the answer."""
    at_ms: int
    """Time of the position or alarm by the phone's clock, milliseconds since 1970 UTC."""
    alarm: str = ""
    silent: bool = False
    """Whether the alarm is a panic in silence, after which nothing may be seen or heard on the phone."""
    position: Mapping[str, float] = field(default_factory=dict)
    """lat, lon in degrees on WGS84 and accuracy in metres; empty for an alarm."""
    charge_pct: float | None = None
    """Battery charge at that time, percent. None if the browser doesn't say it, as on an iPhone."""

    @property
    def is_panic(self) -> bool:
        """Whether the report is a panic, which goes before all others."""
        return self.alarm == ALARMS["panic"]

    def form(self, device_id: str) -> dict[str, str]:
        """The report in the OsmAnd protocol. A report that is sent twice gives the same form, so ingest counts it once."""
        values = {
            "id": device_id,
            "timestamp": str(self.at_ms),
            **{name: repr(value) for name, value in self.position.items()},
        }
        charge = {} if self.charge_pct is None else {"batt": repr(self.charge_pct)}
        alarm = {"alarm": self.alarm} if self.alarm else {}
        return values | charge | alarm | ({"silent": "true"} if self.silent else {})


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """Outcome of a report, with ingest's reason and the commands that came with its answer."""

    outcome: ReportOutcome
    field: str = ""
    reason: str = ""
    retry_after_s: int = 0
    """Time after which the phone may send it again, seconds; 0 at the next request."""
    commands: Sequence[Mapping[str, Any]] = ()


def parse_reports(content: Any) -> list[PhoneReport]:
    """Parses the reports of a request, panics first. Raises InvalidField; then nothing of the request is used."""
    given = content.get("reports") if isinstance(content, dict) else None
    if not isinstance(given, list) or not given:
        raise InvalidField("reports", "must be a list with at least one report")
    fields.at_most("reports", given, MAX_REPORTS)
    reports = []
    for number, report in enumerate(given):
        try:
            reports.append(_report(report))
        except InvalidField as error:
            raise error.under(f"reports[{number}]") from None
    return sorted(reports, key=lambda report: not report.is_panic)


def has_panic(content: Any) -> bool:
    """Whether a request's content, which may be anything, has a panic."""
    given = content.get("reports") if isinstance(content, dict) else None
    return isinstance(given, list) and any(
        isinstance(report, dict) and report.get("alarm") == "panic" for report in given
    )


def _report(content: Any) -> PhoneReport:
    if not isinstance(content, dict):
        raise InvalidField("", "must be an object")
    report_id = fields.required_id("id", content["id"] if isinstance(content.get("id"), str) else "")
    at_ms = content.get("at_ms")
    if not isinstance(at_ms, int) or isinstance(at_ms, bool) or not 0 < at_ms < 1 << 53:
        raise InvalidField("at_ms", "must be milliseconds since 1970 (example: 1795603655000)")
    if "alarm" in content:
        alarm = ALARMS.get(content["alarm"]) if isinstance(content["alarm"], str) else None
        if alarm is None:
            raise InvalidField("alarm", f"must be {' or '.join(ALARMS)}")
        # A panic is never refused because of this value. Whatever isn't false asks for silence, which does no harm.
        silent = alarm == ALARMS["panic"] and content.get("silent", False) is not False
        return PhoneReport(report_id, at_ms=at_ms, alarm=alarm, silent=silent)
    bounds = {"lat": (-90.0, 90.0), "lon": (-180.0, 180.0), "accuracy": (0.0, MAX_ACCURACY_M)}
    return PhoneReport(
        report_id,
        at_ms,
        position={name: _number(content, name, limits) for name, limits in bounds.items()},
        charge_pct=_number(content, "battery", (0.0, 100.0)) if "battery" in content else None,
    )


def _number(content: Mapping[str, Any], name: str, bounds: tuple[float, float]) -> float:
    value = content.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidField(name, "must be a number")
    return float(fields.number(name, value, bounds[0], greatest=bounds[1]))


def interval_s(commands: Sequence[Mapping[str, Any]]) -> int | None:
    """The interval that ingest's commands ask for, seconds, within the app's bounds; None if they ask for none."""
    asked = [
        int(interval["interval_s"])
        for command in commands
        if (interval := command.get("instruction", {}).get("report_every")) and "interval_s" in interval
    ]
    return min(max(min(asked), SOONEST_INTERVAL_S), LATEST_INTERVAL_S) if asked else None


def wants_position_now(commands: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ingest's commands ask for a position at once."""
    return any("locate_now" in command.get("instruction", {}) for command in commands)


DEFAULT_PUSH_SERVICES = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    "*.push.apple.com",
    "*.notify.windows.com",
)
"""Hosts of the push services of Chrome, Firefox, Safari and Edge."""
MAX_ENDPOINT_LENGTH = 1_024
_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
_HOST = re.compile(rf"(\*\.)?{_NAME.pattern}")
_LOOPBACK = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}")


def is_push_service(entry: str, *, plain: bool) -> bool:
    """Whether a setting's entry is a host, or with `plain` a loopback address."""
    return bool(_HOST.fullmatch(entry) or (plain and _LOOPBACK.fullmatch(entry)))


def check_endpoint(endpoint: str, services: Iterable[str]) -> str:
    """The address of a phone at its push service. Raises InvalidField unless it is one of `services`."""
    if len(endpoint) > MAX_ENDPOINT_LENGTH or not endpoint.isascii() or any(ord(sign) < 33 for sign in endpoint):
        raise InvalidField("endpoint", f"must be an address of at most {MAX_ENDPOINT_LENGTH} characters")
    try:
        parts = urlsplit(endpoint)
        origin = f"{parts.scheme}://{parts.netloc}"
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        raise InvalidField("endpoint", "is no address") from None
    if origin in services:
        return endpoint  # a loopback address, which the settings accept on loopback only
    is_named = _NAME.fullmatch(host) is not None and any(
        host == entry or (entry[:2] == "*." and host.endswith(entry[1:])) for entry in services
    )
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc or not is_named:
        raise InvalidField("endpoint", "is no address of a known push service")
    return endpoint


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, and not in a private, local or reserved network."""
    parsed = ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_global and not parsed.is_multicast


def text_of(content: Any, name: str) -> str:
    """A text of a parsed JSON object, empty if it is missing or no text."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, str) else ""
