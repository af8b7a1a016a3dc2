"""A report as PDF: the same bundle and language give the same bytes, on every machine with this version of the typesetter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typst

from services.cli.failure import CommandFailed
from services.cli.report.words import Words

_FOLDER = Path(__file__).parent
_TEMPLATES, _FONTS = _FOLDER / "templates", _FOLDER / "fonts"


def pdf(template: str, content: Mapping[str, Any], words: Words, *, at_ms: int) -> bytes:
    """Typesets a template of `templates` with its content. `at_ms` is the document's date, milliseconds since 1970 UTC.

    Only the enclosed fonts are used, since a system's fonts differ from machine to machine. Raises CommandFailed if the typesetter
    refuses.
    """
    inputs = {"content": json.dumps({**content, "language": words.language, "page": words("page")}, ensure_ascii=False)}
    try:
        made: bytes = typst.compile(
            _TEMPLATES / f"{template}.typ",
            root=_TEMPLATES,
            font_paths=[_FONTS],
            ignore_system_fonts=True,
            format="pdf",
            sys_inputs=inputs,
            timestamp=at_ms // 1000,
        )
    except RuntimeError as error:
        raise CommandFailed(f"the report can't be typeset: {error}") from None
    return made
