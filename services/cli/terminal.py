"""Safe terminal output: text from servers and files is shown as text and can't act on the terminal.

Escape sequences can move the cursor and overwrite lines. Direction marks can reverse text, and rich's markup can style or hide it.
So control characters are shown as escapes, and strings aren't parsed as markup. `styled` builds styled text.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

LINE_BREAKS = "\n\t"


def printable(text: object, keep: str = "") -> str:
    """The text with each unprintable character as an escape such as `\\x1b`, except the characters in `keep`."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in shown)


def styled(*parts: str | tuple[str, str]) -> Text:
    """One printable line of several parts. A part is a text, or a text with its style."""
    return Text.assemble(
        *(printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts), end=""
    )


class SafeConsole(Console):
    """A rich console that shows strings literally, without markup, emoji codes or control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as the console shows it, in tables too."""
        return super().render_str(printable(text, LINE_BREAKS), **options)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
