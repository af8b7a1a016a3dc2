"""Formats of a report: times in Korea, durations and distances. The same on every machine."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

KOREA = timezone(timedelta(hours=9))
"""Korean standard time, which has no summer time."""


def date_time(ms: int) -> str:
    """Date and time in Korea, to the second, from milliseconds since 1970 UTC."""
    return datetime.fromtimestamp(ms // 1000, KOREA).strftime("%Y-%m-%d %H:%M:%S")


def minute(ms: int) -> str:
    """Date, hour and minute in Korea."""
    return datetime.fromtimestamp(ms // 1000, KOREA).strftime("%Y-%m-%d %H:%M")


def clock_time(ms: int) -> str:
    """Time of day in Korea, to the millisecond."""
    return datetime.fromtimestamp(ms // 1000, KOREA).strftime("%H:%M:%S") + f".{ms % 1000:03d}"


def metres(distance_m: float) -> str:
    """A distance: whole metres below 10 km, else kilometres with one digit."""
    return f"{distance_m:.0f} m" if distance_m < 10_000 else f"{distance_m / 1000:.1f} km"


def percent(share: float) -> str:
    """A probability in percent. Very small and very great ones aren't rounded to 0 or 100."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"
