"""`tandem status`, `open`, `logs` and `down`: the mesh that runs on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.table import Column, Table
from rich.text import Text

from services.cli import usage
from services.cli.terminal import SafeConsole, fitted, for_results, styled
from services.cli.usage import did_you_mean
from services.client import mesh, outcome
from services.client.mesh import DEFAULT_FOLDER, MeshConnection, dir_option
from services.common.failure import FAILED, MISUSED, CommandFailed
from services.local import monitoring


def status(
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: usage.AsJson = False,
) -> None:
    """Show whether each process of a mesh runs and does its work, and where its console is.

    Exit code 0 if all do, 1 if one doesn't, 2 if no mesh runs on the folder.
    """
    running = mesh.load(folder)
    states = asyncio.run(monitoring.states_of(running))
    all_ready = all(state.is_ready for state in states)
    if as_json:
        processes = [
            {"name": state.name, "pid": state.pid, "is_ready": state.is_ready, "answer": state.answer}
            for state in states
        ]
        print(json.dumps({"is_ready": all_ready, "processes": processes, "console_url": running.console_url}))
    else:
        console = for_results()
        table = Table("process", Column("pid", justify="right"), Column("state", overflow="fold"))
        for state in states:
            style = "green" if state.is_ready else "bold red"
            table.add_row(state.name, str(state.pid or "-"), state.answer, style=style)
        console.print(fitted(console, table))
        ready = sum(state.is_ready for state in states)
        console.print(f"{ready} of {len(states)} processes are ready; the clock's rate is {running.clock.rate}")
        console.print(f"console: {running.console_url or 'there is none'}")
    raise typer.Exit(0 if all_ready else FAILED)


def open_(
    incident_id: Annotated[
        str, typer.Argument(metavar="[INCIDENT]", help="Id of the incident; default: the live page.")
    ] = "",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    only_print: Annotated[bool, typer.Option("--print", help="Print the address, and open no browser.")] = False,
) -> None:
    """Open the console in a browser, at the page of an incident or at the live page, and print the address.

    Choose a role to sign in: the page of an incident is for the police, probation and reviewers. Exit code 2 if neither
    agency's leg knows the incident.
    """
    if incident_id:
        usage.required_id("INCIDENT", incident_id)
    running = mesh.load(folder)
    if not running.console_url:
        raise CommandFailed(f"the mesh on {folder} has no console: with --tls it needs an identity provider", MISUSED)
    if incident_id:
        uvloop.run(_check_that_it_exists(running, incident_id, folder))
    url = page_of(running, incident_id)
    print(url)
    if not only_print:
        webbrowser.open(url)


async def _check_that_it_exists(running: MeshConnection, incident_id: str, folder: Path) -> None:
    """Raises CommandFailed if both agencies' legs answer and neither knows the incident: its page would be "not found"."""
    async with mesh.connect(running) as clients:
        known, silent = await outcome.read_incident(clients, incident_id)
    if known:
        return
    if silent:  # the page must open while a leg is away, so the reader is left to find out
        print(f"no answer from {', '.join(silent)}, and no other leg knows {incident_id}", file=sys.stderr)
        return
    raise CommandFailed(
        f"no incident {incident_id}: `tandem incidents{mesh.dir_option(folder)}` lists those that there are", MISUSED
    )


def page_of(running: MeshConnection, incident_id: str) -> str:
    """URL of an incident's page on the console, or of the live page if the id is empty. Empty if there is no console."""
    if not incident_id or not running.console_url:
        return running.console_url
    return f"{running.console_url}/incidents/{incident_id}"


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
    folder: usage.MeshFolder = DEFAULT_FOLDER,
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
        raise CommandFailed(f"{folder} has no logs: start a mesh there with `tandem up{dir_option(folder)}`", MISUSED)
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


STOP_POLL_S = 0.1
STOP_WITHIN_S = 60.0
"""Time for all processes to end, seconds: the services get 8 s, and then nats-server as long."""


def down(folder: usage.MeshFolder = DEFAULT_FOLDER) -> None:
    """Stop the mesh of a folder: services first, nats-server last. Its data stay, and `tandem up` continues with them.

    Exit code 0 if none runs on the folder, 2 if one runs on another folder instead.
    """
    if mesh.owner(folder) is None:
        if others := mesh.other_folders(folder):
            raise CommandFailed(f"no mesh runs on {folder}, so nothing was stopped; {mesh.running_on(others)}", MISUSED)
        print(f"no mesh runs on {folder}")
        return
    asked: set[int] = set()
    give_up_at = time.monotonic() + STOP_WITHIN_S
    with SafeConsole(stderr=True).status("stopping"):
        while (pid := mesh.owner(folder)) is not None:
            if time.monotonic() > give_up_at:
                raise CommandFailed(
                    f"the mesh on {folder} hasn't ended after {STOP_WITHIN_S:.0f} s; its process id is {pid}"
                )
            if pid and pid not in asked:
                with suppress(ProcessLookupError):  # it has ended already
                    os.kill(pid, signal.SIGTERM)
                asked.add(pid)
            time.sleep(STOP_POLL_S)
    print(f"the mesh on {folder} has stopped; its data are kept")
