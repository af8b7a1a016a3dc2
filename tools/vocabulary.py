"""`python -m tools.vocabulary [--root DIR]`: checks names and prose of the tracked files against tools/vocabulary.toml.

It reports banned identifiers, banned phrases in prose, and class names that exist more than once in services/ without being listed as
two sides of one edge. It prints counts, and exits with 1 if it has findings.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".toml")
MAX_PAIRS = 12
"""Maximum number of pairs of classes that may share a name."""
SHOWN = 40
"""Number of findings printed without --all; the counts cover all findings."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NAME = re.compile(r"[A-Za-z_]\w*")
_CODE_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_CODE_STRING = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`", re.DOTALL)
_DOCUMENTS = frozenset((".md", ".html", ".yaml", ".yml", ".toml"))
"""Suffixes of files that are prose throughout. Those of YAML and TOML hold comments and texts that people read."""
_CODE = frozenset((".py", ".proto", ".ts", ".mjs"))
_RECIPES = frozenset(("Makefile", "Containerfile"))
_SKIPPED = re.compile(r"(^|/)(gen|node_modules|static)/|\.lock$|package-lock\.json$|^LICENSE$|^tools/vocabulary\.toml$")


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation of the vocabulary."""

    path: str
    """File, relative to the root."""
    line: int
    """Line number, from 1."""
    kind: str
    """`identifier`, `phrase` or `class`."""
    text: str
    """The name or phrase."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The rules of tools/vocabulary.toml."""

    whole: frozenset[str]
    words: frozenset[str]
    pattern: re.Pattern[str]
    allowed: frozenset[str]
    prose: re.Pattern[str]
    twice: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Reads the rules from a TOML file. Raises ValueError if it allows more than MAX_PAIRS pairs of classes."""
        table = tomllib.loads(path.read_text("utf-8"))
        names = table["identifiers"]
        prose = table["prose"]
        twice = table["classes"]["twice"]
        if len(twice) > MAX_PAIRS:
            raise ValueError(f"classes.twice: {len(twice)} pairs, but at most {MAX_PAIRS} are allowed")
        phrases = [rf"\b{re.escape(phrase)}\b" for phrase in prose["phrases"]]
        openings = [rf"(?:^|(?<=[.:;!?]\s)|(?<=\"\"\"))(?-i:{re.escape(opening)})\b" for opening in prose["openings"]]
        return cls(
            whole=frozenset(names["whole"]),
            words=frozenset(names["words"]),
            pattern=re.compile("|".join(names["patterns"]) or r"(?!)"),
            allowed=frozenset(names["allowed"]),
            prose=re.compile("|".join([*phrases, *openings]) or r"(?!)", re.IGNORECASE | re.MULTILINE),
            twice=frozenset(twice),
        )

    def bans(self, identifier: str) -> bool:
        """Whether an identifier is banned."""
        if identifier in self.allowed:
            return False
        bare = identifier.strip("_")
        return (
            bare in self.whole
            or bool(self.pattern.search(bare))
            or any(word.lower() in self.words for word in _WORD.findall(bare))
        )


def tracked(root: Path) -> list[str]:
    """Tracked files below a folder that people wrote, as paths relative to it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return [path for path in listed.split("\0") if path and not _SKIPPED.search(path)]


def findings(root: Path, vocabulary: Vocabulary) -> list[Finding]:
    """All violations in the tracked files below a folder, in order of files and lines."""
    found: list[Finding] = []
    classes: dict[str, list[Finding]] = defaultdict(list)
    for path in tracked(root):
        suffix = ".md" if Path(path).name in _RECIPES else Path(path).suffix
        if suffix not in _DOCUMENTS | _CODE:
            continue
        text = (root / path).read_text("utf-8")
        names, prose = _python(text) if suffix == ".py" else _other(text, suffix)
        found += [
            Finding(path=path, line=line, kind="identifier", text=name) for line, name in names if vocabulary.bans(name)
        ]
        for first_line, passage in prose:
            for match in vocabulary.prose.finditer(passage):
                line = first_line + passage.count("\n", 0, match.start())
                found.append(Finding(path=path, line=line, kind="phrase", text=match.group()))
        if suffix == ".py" and path.startswith("services/"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    classes[node.name].append(Finding(path=path, line=node.lineno, kind="class", text=node.name))
    for name, places in classes.items():
        if len(places) > (2 if name in vocabulary.twice else 1):
            found += places
    return sorted(found, key=lambda finding: (finding.path, finding.line))


def _python(text: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Names with their lines, and passages of prose (comments and strings) with their first lines, from Python source."""
    names: list[tuple[int, str]] = []
    prose: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            names.append((token.start[0], token.string))
        elif token.type == tokenize.COMMENT:
            prose.append((token.start[0], token.string.lstrip("# ")))
        elif token.type in _STRINGS:
            prose.append((token.start[0], token.string))
    return [*names, *_names_in_f_strings(text)], prose


def _names_in_f_strings(text: str) -> Iterator[tuple[int, str]]:
    """Names in the braces of f-strings, with their lines. Before Python 3.12 an f-string is one token; since then they are tokens."""
    if sys.version_info >= (3, 12):
        return
    for string in ast.walk(ast.parse(text)):
        if isinstance(string, ast.JoinedStr):
            for node in ast.walk(string):
                if isinstance(node, ast.Name):
                    yield node.lineno, node.id
                elif isinstance(node, ast.Attribute):
                    yield node.lineno, node.attr


_STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
"""From Python 3.12 on, the text of an f-string is a token of its own."""


def _other(text: str, suffix: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Names and prose, as in `_python`, from a file that isn't Python. A document is prose throughout."""
    if suffix in _DOCUMENTS:
        return [], [(1, text)]
    prose = [
        (text.count("\n", 0, match.start()) + 1, match.group().lstrip("/* ")) for match in _CODE_COMMENT.finditer(text)
    ]

    def blank(match: re.Match[str]) -> str:
        return "\n" * match.group().count("\n")

    code = _CODE_STRING.sub(blank, _CODE_COMMENT.sub(blank, text))
    names = [(number, name) for number, line in enumerate(code.splitlines(), 1) for name in _NAME.findall(line)]
    return names, prose


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to read")
    parser.add_argument("--all", action="store_true", help=f"print every finding, not only the first {SHOWN}")
    options = parser.parse_args()
    found = findings(options.root, Vocabulary.read(TABLE))
    for finding in found if options.all else found[:SHOWN]:
        print(f"{finding.path}:{finding.line}: {finding.kind} {finding.text}")
    if len(found) > SHOWN and not options.all:
        print(f"... and {len(found) - SHOWN} more (--all prints them)")
    counts = Counter(finding.kind for finding in found)
    twice = len({finding.text for finding in found if finding.kind == "class"})
    print(
        f"banned identifiers: {counts['identifier']}, banned phrases: {counts['phrase']}, "
        f"class names that exist more than once in services/: {twice}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
