"""`python -m tools.secret_scan [FILE ...]`: finds secrets in the files of the repository, or in the named files.

It finds private keys, tokens of well-known forms, passwords in URLs, and long random values assigned to a name with key, secret,
password or token in it. A comment `not-a-secret` in the line marks a false finding.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "not-a-secret"
BITS_LEAST = 3.0
"""Minimum entropy of a random value, bits per character; words and repeated digits have less."""

FORMS = {
    "a private key": re.compile(
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*(?:\\n)?[A-Za-z0-9+/]{16}|^-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----$"
    ),
    "a token": re.compile(
        r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|glpat-[\w-]{20}|xox[abprs]-[\w-]{10,}"
        r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|sk-[A-Za-z0-9]{32,}|pypi-[\w-]{50,})"
    ),
    "a password in a URL": re.compile(
        r"\b[a-z][a-z0-9+]*://[^\s/:@{}$<>\"'`]+:(?!\.\.\.)(?P<value>[^\s/:@{}$<>\"'`*]{4,})@"
    ),
}
NAMED = re.compile(
    r"(?i)(?:key|secret|passw(?:or)?d|token)\w*[\"']?\s*(?::\s*\w+\s*=|[:=]>?)\s*[rbf]?[\"']?(?P<value>[A-Za-z0-9+/_=-]{20,})"
)


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Line number and kind of each secret in a text."""
    for number, line in enumerate(text.splitlines(), 1):
        if MARK in line:
            continue
        for kind, form in FORMS.items():
            if (found := form.search(line)) and not _is_placeholder(found.groupdict().get("value", "")):
                yield number, kind
        if (named := NAMED.search(line)) and _is_random(named["value"]):
            yield number, "a random value that is called a secret"


def _is_placeholder(value: str) -> bool:
    return bool(re.fullmatch(r"[A-Z_]+|password|\$.*", value))


def _is_random(value: str) -> bool:
    mixed = re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)
    return (
        bool(mixed)
        and entropy(value) >= BITS_LEAST
        and not re.fullmatch(r"[A-Za-z_]+[0-9]?|[\w-]*(?:_[a-z]+)+\w*", value)
    )


def entropy(value: str) -> float:
    """Entropy of a text, bits per character, from the frequencies of its characters."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


def main(arguments: list[str]) -> int:
    """Scans the files. Returns the exit code: 1 if there are findings."""
    if arguments:
        files = [Path(argument) for argument in arguments]
    else:
        listed = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, capture_output=True, check=True).stdout
        files = [ROOT / path for path in listed.decode().split("\0") if path and not path.endswith(".lock")]
    found = 0
    for file in files:
        try:
            text = file.read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary files and deleted files
        for number, kind in findings(text):
            print(f"{file}:{number}: {kind}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
