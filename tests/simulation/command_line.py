"""The command line of simulations, for tests."""

from __future__ import annotations

import os
import subprocess
import sys


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own: a world replaces the process's clock."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
        capture_output=True,
        text=True,
        check=False,
    )
