"""Runs `tandem` commands on this machine's mesh, each in a process of its own, for documents from data that the console can't read.

`tandem report` collects the evidence of all legs and signs it with the custodian's key, and `tandem explain` refolds the log. Both
record the disclosure before they show anything. They need the mesh's folder, so a console on another machine doesn't offer these
documents.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from services.common.observability.telemetry import logger
from services.console.domain.people import SELF, ConsoleUser
from services.console.guard import Ask
from services.console.pages import assets

ENDS_WITHIN_S = 240.0
"""Maximum time for a command, seconds. Refolding an incident's log takes a few seconds, on a busy machine a minute."""
COMMAND = (sys.executable, "-m", "services.cli")
_REFUSALS = {2: (400, "document_refused"), 3: (410, "document_aged_out")}
"""HTTP status and key of the text for a command's exit codes; any other code is a failure."""


class CommandRefused(Exception):
    """A command wasn't run, or it failed. `status` is the HTTP status, `reason` the key of the text for the user."""

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        """Error text of the command; empty if there is none."""


class CommandOutcome(NamedTuple):
    """Result of a command that ran to its end."""

    exit_code: int
    output: bytes
    error_line: str
    """Last line on standard error; empty if there is none."""

    @property
    def refusal(self) -> CommandRefused:
        """The refusal to show for an exit code that isn't 0."""
        status, reason = _REFUSALS.get(self.exit_code, (502, "document_failed"))
        return CommandRefused(status, reason, self.error_line)


class MeshCommands:
    """Runs one command at a time."""

    def __init__(
        self,
        folder: Path | None,
        *,
        tls: bool = False,
        command: Sequence[str] = COMMAND,
        within_s: float = ENDS_WITHIN_S,
    ) -> None:
        """With `tls` the ledger names a user as the services do: `console/NAME`."""
        self._folder, self._command, self._within_s = folder, command, within_s
        self._named_under = f"{SELF}/" if tls else ""
        self._free = asyncio.Semaphore(1)

    @property
    def is_available(self) -> bool:
        """Whether the mesh runs on this machine."""
        return self._folder is not None

    def reviewer(self, user: ConsoleUser) -> str:
        """Name of a reviewer for the commands' option --reviewer."""
        return self._named_under + user.name

    async def report(self, options: Sequence[str]) -> Mapping[str, bytes]:
        """Runs `tandem report`. Returns the files that it wrote, by their ending: .pdf, and .tar for an incident.

        Raises CommandRefused.
        """
        with tempfile.TemporaryDirectory(prefix="tandem-report-") as temporary:
            outcome = await self.run("report", (*options, "--out", f"{temporary}/report.pdf"))
            if outcome.exit_code:
                raise outcome.refusal
            return await asyncio.to_thread(_read, Path(temporary))

    async def run(self, name: str, options: Sequence[str]) -> CommandOutcome:
        """Runs a command on the mesh to its end. Raises CommandRefused if another one runs, or if it doesn't end in time."""
        if self._folder is None:
            raise CommandRefused(501, "document_elsewhere")
        if self._free.locked():
            raise CommandRefused(503, "document_busy")
        async with self._free:
            outcome = await self._run((name, *options, "--dir", str(self._folder)))
        if outcome.exit_code:
            logger().warning("command_failed", command=name, exit_code=outcome.exit_code)
        return outcome

    async def _run(self, arguments: Sequence[str]) -> CommandOutcome:
        process = await asyncio.create_subprocess_exec(
            *(*self._command, *arguments),
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._within_s):
                output, said = await process.communicate()
        except TimeoutError:
            raise CommandRefused(504, "document_slow") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        lines = said.decode(errors="replace").strip().splitlines()
        return CommandOutcome(process.returncode or 0, output, lines[-1][:400] if lines else "")


def refused(ask: Ask, refusal: CommandRefused) -> web.Response:
    """Makes the page that says why there is no document, with the command's error text."""
    return assets.page(ask, "error.html", status=refusal.status, reason=refusal.reason, detail=refusal.detail)


def _environment() -> dict[str, str]:
    """The environment without the console's own settings, but with the addresses of the legs' databases."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TANDEM_") or name.endswith("_DATABASE_URL")
    }


def _read(folder: Path) -> dict[str, bytes]:
    return {path.suffix: path.read_bytes() for path in sorted(folder.iterdir())}
