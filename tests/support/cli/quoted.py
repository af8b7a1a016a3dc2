"""Commands that a document quotes with their output: found in its code blocks, and compared without what differs from run to run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VARYING = (
    (re.compile(r"[│┃┆|─━┼╇┡┩└┘┏┓┳┴┌┐├┤┬]+"), " "),
    (re.compile(r"\b(incident|alert|person|wearer|tag|app|case|order|assignment|place)-[0-9a-f]{6,}\S*"), r"\1-ID"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "HEX"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?|\d\d:\d\d:\d\d(\.\d+)?Z?|\d{4}-\d\d-\d\d"), "TIME"),
    (re.compile(r"\d[\d,]*(\.\d+)?( ?(ms|s|min)\b)?"), "N"),
)


@dataclass(frozen=True, slots=True)
class QuotedCommand:
    """A command of a document."""

    command: str
    """Without the prompt."""
    lines: tuple[str, ...]
    """Quoted lines of its output. A line `...` stands for lines that are left out."""


def commands(document: Path) -> Iterator[QuotedCommand]:
    """The commands in the code blocks of a document, in their order."""
    for block in re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        for quoted in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = quoted.replace("\\\n", " ").splitlines()
            yield QuotedCommand(command, tuple(line for line in lines if line.strip() not in ("", "...")))


def shape(text: str) -> str:
    """A text without ids, times, numbers and the lines of tables, and with single spaces."""
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def missing(quoted: QuotedCommand, output: str) -> list[str]:
    """Quoted lines that the output doesn't have, by their shapes."""
    printed = shape(output)
    return [line for line in quoted.lines if shape(line) not in printed]
