"""Stretches of time as pairs of moments, in order and without overlap, milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Stretch = tuple[int, int]
"""First and last moment of a stretch of time."""


def add_stretch(stretches: list[Stretch], from_ms: int, to_ms: int) -> None:
    """Adds a stretch, joined with the stretches that it touches."""
    touched = [stretch for stretch in stretches if stretch[0] <= to_ms and from_ms <= stretch[1]]
    for stretch in touched:
        stretches.remove(stretch)
    stretches.append(
        (min([from_ms, *(stretch[0] for stretch in touched)]), max([to_ms, *(stretch[1] for stretch in touched)]))
    )
    stretches.sort()


def without(spans: list[Stretch], others: Iterable[Stretch]) -> list[Stretch]:
    """The parts of `spans` outside `others`, which may overlap each other."""
    for from_ms, to_ms in others:
        remaining: list[Stretch] = []
        for start_ms, end_ms in spans:
            if to_ms <= start_ms or end_ms <= from_ms:
                remaining.append((start_ms, end_ms))
                continue
            if start_ms < from_ms:
                remaining.append((start_ms, from_ms))
            if to_ms < end_ms:
                remaining.append((to_ms, end_ms))
        spans = remaining
    return spans


def overlaps(spans: Iterable[Stretch], from_ms: int, to_ms: int) -> Iterator[Stretch]:
    """The parts of a stretch that lie in `spans`. A span that only touches the stretch at one end gives none, unless the stretch is
    a single moment."""
    for start_ms, end_ms in spans:
        low_ms, high_ms = max(start_ms, from_ms), min(end_ms, to_ms)
        if low_ms < high_ms or low_ms == high_ms == from_ms == to_ms:
            yield low_ms, high_ms


def meets(spans: Iterable[Stretch], from_ms: int, to_ms: int) -> bool:
    """Whether a stretch has a moment in common with `spans`."""
    return any(start_ms <= to_ms and from_ms <= end_ms for start_ms, end_ms in spans)
