"""The `tandem` command in this process, for what needs no mesh: a process of its own takes seconds to import it all."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import NamedTuple
from unittest.mock import patch

from services.cli import __main__ as command_line


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Ended:
    """Runs a `tandem` command to its end."""
    stdout = io.StringIO()
    stderr = io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", ["tandem", *arguments]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            command_line.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, stdout.getvalue(), stderr.getvalue())
