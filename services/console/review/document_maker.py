"""Makes documents for a court by `tandem report`, in a process of its own.

The command collects the evidence of all legs, signs it with the custodian's key and records the disclosure. It needs the mesh's folder
on this machine, so a console that runs elsewhere makes no documents.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.common.observability.telemetry import logger

MAKES_WITHIN_S = 240.0
"""Maximum time for a document, seconds. Folding an incident's log anew takes a few seconds, on a busy machine a minute."""
_NAME = "report"


class DocumentRefused(Exception):
    """No document was made. `status` is the HTTP status, `reason` the key of the text for the user."""

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        """What the command said; empty if it said nothing."""


_REFUSALS = {2: (400, "document_refused"), 3: (410, "document_aged_out")}
"""HTTP status and key of the text for the command's exit codes; any other code is a failure."""


COMMAND = (sys.executable, "-m", "services.cli", "report")


class DocumentMaker:
    """Makes one document at a time."""

    def __init__(
        self, folder: Path | None, *, command: Sequence[str] = COMMAND, within_s: float = MAKES_WITHIN_S
    ) -> None:
        self._folder, self._command, self._within_s = folder, command, within_s
        self._free = asyncio.Semaphore(1)

    @property
    def is_available(self) -> bool:
        """Whether documents can be made on this machine."""
        return self._folder is not None

    async def make(self, options: Sequence[str]) -> Mapping[str, bytes]:
        """Runs `tandem report` with these options. Returns the files that it wrote, by their ending: .pdf, and .tar for an incident.

        Raises DocumentRefused.
        """
        if self._folder is None:
            raise DocumentRefused(501, "document_elsewhere")
        if self._free.locked():
            raise DocumentRefused(503, "document_busy")
        async with self._free:
            with tempfile.TemporaryDirectory(prefix="tandem-report-") as temporary:
                out = Path(temporary) / f"{_NAME}.pdf"
                code, said = await self._run((*options, "--out", str(out), "--dir", str(self._folder)))
                if code:
                    status, reason = _REFUSALS.get(code, (502, "document_failed"))
                    logger().warning("document_not_made", status=status, exit_code=code)
                    raise DocumentRefused(status, reason, said)
                return await asyncio.to_thread(_read, Path(temporary))

    async def _run(self, options: Sequence[str]) -> tuple[int, str]:
        """Runs the command. Returns its exit code and its last line on standard error. Raises DocumentRefused if it is slow."""
        process = await asyncio.create_subprocess_exec(
            *(*self._command, *options),
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._within_s):
                _, said = await process.communicate()
        except TimeoutError:
            raise DocumentRefused(504, "document_slow") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        lines = said.decode(errors="replace").strip().splitlines()
        return process.returncode or 0, lines[-1][:400] if lines else ""


def _environment() -> dict[str, str]:
    """The environment without the console's own settings, but with the addresses of the legs' databases."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TANDEM_") or name.endswith("_DATABASE_URL")
    }


def _read(folder: Path) -> dict[str, bytes]:
    return {path.suffix: path.read_bytes() for path in sorted(folder.iterdir())}
