"""Write the generated reference: `python -m tools.reference`. With `--check`, fail if a committed page is stale."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from tools.reference import command_line, contracts, legal_bases, log_events, metrics, settings, stored_names, words
from tools.reference.sources import ROOT

PAGES: Mapping[str, Callable[[], str]] = {
    "command-line.md": command_line.render,
    "csv-tables.md": command_line.render_tables,
    "settings.md": settings.render,
    "metrics.md": metrics.render,
    "alert-rules.md": metrics.render_rules,
    "log-events.md": log_events.render,
    "contracts.md": contracts.render,
    "legal-bases.md": legal_bases.render,
    "stored-names.md": stored_names.render,
    "words.md": words.render,
}
"""Pages of docs/reference, and what renders each."""


def main() -> None:
    """Writes or checks the pages."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, render in PAGES.items():
        path = ROOT / "docs" / "reference" / name
        text = render()
        if check and (not path.exists() or path.read_text("utf-8") != text):
            stale.append(str(path.relative_to(ROOT)))
        elif not check:
            path.write_text(text, "utf-8")
    if stale:
        sys.exit(f"stale: {', '.join(stale)}. Run `make reference`, and commit the pages.")


if __name__ == "__main__":
    main()
