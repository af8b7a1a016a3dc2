"""A trace's spans as whoever looks at one sees them: each under the one that led to it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar


class Placed(Protocol):
    """What a span needs to be put in its place."""

    @property
    def span_id(self) -> str:
        """Its own id."""

    @property
    def parent_span_id(self) -> str:
        """The id of the one that led to it; empty for a root."""


S = TypeVar("S", bound=Placed)


def in_order(spans: Sequence[S], roots: Collection[str] = ("",)) -> list[tuple[S, int]]:
    """Each span behind the one that led to it, with its depth; those of one parent as they came.

    Begins with those whose parent's id is among `roots`. What hangs from none of them, or leads to itself, is left out.
    """
    under: dict[str, list[S]] = {}
    for one in spans:
        under.setdefault("" if one.parent_span_id in roots else one.parent_span_id, []).append(one)
    placed: list[tuple[S, int]] = []
    waiting = [(one, 0) for one in reversed(under.get("", []))]
    while waiting:
        span, depth = waiting.pop()
        placed.append((span, depth))
        waiting += [(one, depth + 1) for one in reversed(under.pop(span.span_id, []))]
    return placed


def duration(us: int) -> str:
    """Microseconds for a person."""
    return f"{us / 1000:.1f} ms" if us < 10_000_000 else f"{us / 1e6:.1f} s"
