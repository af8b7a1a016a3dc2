"""The words of the practice: one table in Korean and English, by the names of the protos' enums and by the codes of the articles.

The console, her app, a unit's page, the documents for a court, the commands and the messages have them from here, so that a thing is
called the same wherever a person meets it. Texts that only one page has stay with that page. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

Word = tuple[str, str]
"""A word or short phrase in Korean and in English."""


def keyed(prefix: str, words: Mapping[str, Word]) -> dict[str, Word]:
    """The words by a prefix and their name, as a table of texts has them that holds words of several kinds."""
    return {f"{prefix}{name}": word for name, word in words.items()}


def within_a_line(words: Mapping[str, Word]) -> dict[str, Word]:
    """The words as they stand within a line: English begins with a small letter."""
    return {name: (korean, english[0].lower() + english[1:]) for name, (korean, english) in words.items()}


def in_small_letters(words: Mapping[str, Word]) -> dict[str, Word]:
    """The words by their name in small letters, as pages and services name a leg or a state among each other."""
    return {name.lower(): word for name, word in words.items()}
