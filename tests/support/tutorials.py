"""Run the code blocks of a tutorial page, as a reader would, and compare what they print with what the page says.

A block with a title that names a file is saved under that name. A `sh` block runs in the folder in which the one before it ended; the
`text` block behind it is what it prints, in which `...` stands for anything. Titles of `sh` blocks: "First terminal" stays running
to the end of the page, and "Set up" may use the network. All others run in a network of their own, if this process may make one, so
that ports are free.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
SET_UP, TERMINAL = "Set up", "First terminal"
BLOCK_WITHIN_S, SET_UP_WITHIN_S = 300.0, 1200.0
_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str
    expected: str | None = None
    """What a `sh` block prints; None if the page doesn't say."""


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order, each `text` block with the `sh` block before it."""
    blocks: list[Block] = []
    for language, title, text in _FENCE.findall(page.read_text("utf-8")):
        if language == "text":
            shell = blocks.pop()
            assert shell.language == "sh" and shell.expected is None, f"{page}: a text block without a sh block: {text}"
            blocks.append(Block("sh", shell.title, shell.text, text))
        else:
            blocks.append(Block(language, title, text))
    return blocks


def matches(expected: str, printed: str) -> bool:
    """Whether a text was printed: `...` stands for anything, and blanks count as one."""
    parts = (part.strip() for part in " ".join(expected.split()).split("..."))
    words = (re.escape(part).replace(r"\ ", r"\s+") for part in parts if part)
    return re.search(".*?".join(words), printed, re.DOTALL) is not None


class TutorialFailed(AssertionError):
    """A block ended with an error, or printed something else."""


@dataclass(slots=True)
class Reader:
    """Follows a page in a folder. Use it as a context manager: what still runs at the end is killed."""

    folder: Path
    """The folder in which the next block runs."""
    took_s: float = 0.0
    """Time that the blocks took without set-up, seconds."""
    set_up_s: float = 0.0
    _holder: subprocess.Popen[bytes] | None = None
    _printed: list[Path] = field(default_factory=list)
    _shells: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Reader:
        isolate = shutil.which("unshare") and shutil.which("ip") and os.geteuid() == 0
        if isolate:
            command = "ip link set lo up && echo ready && exec sleep infinity"
            self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", command], stdout=subprocess.PIPE)
            assert self._holder.stdout is not None
            with self._holder.stdout as output:
                assert output.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        for shell in self._shells:
            # Its background jobs are of its group, and may have outlived it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
        for shell in self._shells:
            shell.wait(BLOCK_WITHIN_S)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()

    def follow(
        self, page: Path, *, only_set_up: bool = False, observers: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> None:
        """Follows a page. `only_set_up` saves its files and runs its set-up alone, for a page that builds on it.

        `observers` are programs by a text of a block: each runs after that block, with what the block printed as its standard input.
        """
        for block in blocks_of(page):
            if block.language != "sh":
                (self.folder / block.title).write_text(block.text, "utf-8")
            elif block.title == SET_UP or not only_set_up:
                self._run(block)
                for text, program in observers.items():
                    if text in block.text:
                        self._observe(program)

    def _observe(self, program: Sequence[str]) -> None:
        """Runs a program that checks what a reader would see, with the last output as its input."""
        with self._printed[-1].open("rb") as printed:
            seen = subprocess.run(
                [*self._enter(), *program],
                stdin=printed,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=BLOCK_WITHIN_S,
                check=False,
            )
        assert seen.returncode == 0, seen.stdout + seen.stderr

    def _enter(self) -> list[str]:
        return ["nsenter", "--net", f"--target={self._holder.pid}"] if self._holder is not None else []

    def _run(self, block: Block) -> None:
        began = time.monotonic()
        printed = self.folder / f".printed-{len(self._shells)}"
        where = self.folder / ".where"
        script = block.text + f'\npwd > "{where}"\n'
        enter = [] if block.title == SET_UP else self._enter()
        self._printed.append(printed)
        with printed.open("wb") as output:
            shell = subprocess.Popen(
                [*enter, "bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "160", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self._shells.append(shell)
        self._wait(block, shell, printed)
        if block.title != TERMINAL:
            self.folder = Path(where.read_text().strip())
        if block.title == SET_UP:
            self.set_up_s += time.monotonic() - began
        else:
            self.took_s += time.monotonic() - began

    def _wait(self, block: Block, shell: subprocess.Popen[bytes], printed: Path) -> None:
        give_up_at = time.monotonic() + (SET_UP_WITHIN_S if block.title == SET_UP else BLOCK_WITHIN_S)
        for text in _read_until(printed, give_up_at):
            code = shell.poll()
            if block.title == TERMINAL and code is None and matches(block.expected or "", text):
                return
            if code is None:
                continue
            whole = printed.read_text("utf-8", "replace")
            if code != 0 or block.title == TERMINAL:
                raise TutorialFailed(f"ended with {code}:\n{block.text}\nand printed:\n{whole}")
            if block.expected is not None and not matches(block.expected, whole):
                raise TutorialFailed(f"expected of:\n{block.text}\nis:\n{block.expected}\nbut it printed:\n{whole}")
            return
        raise TutorialFailed(f"took too long:\n{block.text}\nand printed:\n{printed.read_text('utf-8', 'replace')}")


def _read_until(printed: Path, give_up_at: float) -> Iterator[str]:
    while time.monotonic() < give_up_at:
        yield printed.read_text("utf-8", "replace")
        time.sleep(0.1)
