"""`tandem logs`: print the logs of a mesh's processes, in the order of their times, and follow them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.cli.failure import MISUSED, CommandFailed
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.cli.terminal import SafeConsole, styled
from services.cli.usage import did_you_mean

POLL_S = 0.2
TAIL_BYTES = 4 << 20
"""Size of the end of a log in which the last lines are looked for, bytes."""
_NATS_TIME = re.compile(r"\[\d+\] (\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d\.\d+)")
_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red"}
_SHOWN_APART = ("timestamp", "level", "event", "service")


@dataclass
class _LogFile:
    """The log of one process, read up to a position."""

    path: Path
    position: int = 0
    rest: bytes = b""
    """Beginning of a line whose end isn't written yet."""
    newest: float = field(default=0.0)
    """Time of the last line with a time, seconds since 1970 UTC. A line without one belongs to the line before it."""

    def tail(self, count: int) -> list[tuple[float, str]]:
        """The last lines with their times. Later calls of `more` continue after them."""
        size = self.path.stat().st_size
        self.position = max(0, size - TAIL_BYTES)
        lines = self.more()
        return lines[len(lines) - count :] if count < len(lines) else lines

    def more(self) -> list[tuple[float, str]]:
        """The lines that were added, with their times. A file that was replaced by a shorter one is read from its start."""
        if self.path.stat().st_size < self.position:
            self.position, self.rest = 0, b""
        with self.path.open("rb") as file:
            file.seek(self.position)
            *lines, self.rest = (self.rest + file.read()).split(b"\n")
            self.position = file.tell()
        return [self._timed(line.decode(errors="replace")) for line in lines if line]

    def _timed(self, line: str) -> tuple[float, str]:
        self.newest = _moment(line) or self.newest
        return self.newest, line


def logs(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Process, as `tandem status` names it; default: all of them.")
    ] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new line until Ctrl-C.")] = False,
    *,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Number of last lines to begin with.", min=0)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they are in the files.")] = False,
) -> None:
    """Print the last lines of the logs, of one process or of all in the order of their times. The mesh needn't run."""
    files = _files(folder, name)
    console = SafeConsole(highlight=False, soft_wrap=True)
    width = max(len(process) for process in files)

    def show(found: list[tuple[float, str, str]]) -> None:
        for _, process, line in found:
            if as_json:
                print(line, flush=True)  # a follower may be a pipe
            else:
                console.print(_shown(line, process.ljust(width) if len(files) > 1 else ""))

    # Each file gives as many lines as are wanted in all, as they may all be of one process.
    last = sorted((at, process, line) for process, file in files.items() for at, line in file.tail(lines))
    show(last[len(last) - lines :] if lines < len(last) else last)
    try:
        while follow:
            show(sorted((at, process, line) for process, file in files.items() for at, line in file.more()))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        pass


def _files(folder: Path, name: str) -> dict[str, _LogFile]:
    found = {path.stem: _LogFile(path) for path in sorted((folder / "logs").glob("*.log"))}
    if not found:
        raise CommandFailed(f"{folder} has no logs: start a mesh there with `tandem up`", MISUSED)
    if not name:
        return found
    if name not in found:
        close = get_close_matches(name, found)
        hint = did_you_mean(close) if close else f"There are {', '.join(found)}."
        raise CommandFailed(f"{folder} has no log of {name!r}. {hint}", MISUSED)
    return {name: found[name]}


def _shown(line: str, process: str) -> Text:
    """A line for a person: time, process, event and its fields. What isn't JSON stays as it is."""
    fields = _fields_of(line)
    if not fields:
        return styled((f"{process}  ", "cyan"), line) if process else styled(line)
    at = str(fields.get("timestamp", ""))[11:23]
    rest = "  ".join(_values(fields))
    style = _STYLES.get(str(fields.get("level")), "")
    parts: list[tuple[str, str]] = [(at, "dim"), (f"  {process}" if process else "", "cyan")]
    return styled(*parts, (f"  {fields['event']}", style or "bold"), (f"  {rest}" if rest else "", style))


def _values(fields: dict[str, object]) -> Iterator[str]:
    for key, value in fields.items():
        if key not in _SHOWN_APART:
            yield f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _fields_of(line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) and "event" in fields else {}


def _moment(line: str) -> float:
    """Time of a line, seconds since 1970 UTC; 0 if it has none. nats-server writes the local time of the machine."""
    try:
        if found := _NATS_TIME.match(line):
            return datetime.fromisoformat(f"{found[1]}-{found[2]}-{found[3]} {found[4][:15]}").timestamp()
        moment = datetime.fromisoformat(str(_fields_of(line).get("timestamp", "")))
    except ValueError:
        return 0.0
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
