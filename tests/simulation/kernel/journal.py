"""Log lines of all simulated processes, with the world's time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

from tests.simulation.kernel.process import running
from tests.simulation.kernel.world import World

KEPT = 4_000


class Line(NamedTuple):
    """A log line."""

    at_s: float
    """Time since the world's start, seconds."""
    process: str
    level: str
    event: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.at_s:12.6f} {self.process:20} {self.level:8} {self.event} {fields}"


class Journal:
    """The newest log lines, and counts of all."""

    def __init__(self, world: World) -> None:
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self.counts: Counter[tuple[str, str]] = Counter()
        """Number of lines by level and event."""
        self.on_line: list[Callable[[Line], None]] = []
        """Each is called with each line."""
        self._world = world

    def note(self, _: object, level: str, fields: MutableMapping[str, Any]) -> str:
        """Keeps a line, as structlog's last processor."""
        event, level = str(fields.pop("event")), str(fields.pop("level", level))
        process = running()
        self.add(process.name if process else "world", level, event, dict(fields))
        return ""

    def add(self, process: str, level: str, event: str, fields: dict[str, Any]) -> None:
        """Keeps a line."""
        self.counts[level, event] += 1
        line = Line(self._world.elapsed_s, process, level, event, fields)
        self.lines.append(line)
        for notify in self.on_line:
            notify(line)
