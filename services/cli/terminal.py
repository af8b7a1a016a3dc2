"""Text for a terminal: whatever a server or a file says is shown as text, and never acts on the terminal.

Escape sequences can move the cursor and overwrite lines, direction marks can turn text round, and rich's markup can style or hide
it. So control characters are shown as escapes, and markup isn't read from strings; what is styled is built by `styled`.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

LINE_BREAKS = "\n\t"


def printable(text: object, keep: str = "") -> str:
    """The text with each character that isn't printable as an escape such as `\\x1b`, but for those in `keep`."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in shown)


def styled(*parts: str | tuple[str, str]) -> Text:
    """One line of several parts, each a text or a text with its style; all of them printable."""
    return Text.assemble(
        *(printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts), end=""
    )


class SafeConsole(Console):
    """A console whose strings are shown as they are, without markup, emoji codes or control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it is shown, in tables too."""
        return super().render_str(printable(text, LINE_BREAKS), **options)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
