"""The list of the console's pages that browser tests visit. A new page gets its line here; a test fails where one is missing."""

from __future__ import annotations

from typing import NamedTuple


class VisitedPage(NamedTuple):
    """A page as one role sees it."""

    role: str
    """Role that visits it; empty for nobody who is signed in."""
    path: str
    """Path, with {incident} and {tag} for those of the demo."""
    shows: str = "main h1, main h2"
    """Element that is there when the page is whole."""
    clicks: tuple[str, ...] = ()
    """Elements that are clicked one after another, once the page is open."""
    status: int = 200
    shot: str = ""
    """Name of the picture for the documentation, in Korean and dark; empty for none."""


PAGES = (
    VisitedPage("", "/sign-in"),
    VisitedPage("police", "/", shows="#incidents tr .demand-RESPOND", shot="console-live-dark-ko"),
    VisitedPage("probation", "/", shows="#incidents tr .demand-RESPOND"),
    VisitedPage("reviewer", "/", shows="#incidents tr .demand-RESPOND"),
    VisitedPage("police", "/search", shows="#h-found"),
    VisitedPage("police", "/incidents/{incident}"),
    VisitedPage("police", "/incidents/{incident}", shows="#state-at li", clicks=("#show-evidence",)),
    VisitedPage("probation", "/incidents/{incident}", shows="#state-at li", clicks=("#show-evidence",)),
    VisitedPage("reviewer", "/incidents/{incident}", shows="section[aria-labelledby=h-ledger] tbody tr"),
    VisitedPage("police", "/reviews", shows="#reviews tbody tr"),
    VisitedPage("police", "/reviews", shows="#sides", clicks=("button.open",)),
    VisitedPage("police", "/devices"),
    VisitedPage("operator", "/devices"),
    VisitedPage("operator", "/reporting"),
    VisitedPage("operator", "/reporting/{tag}"),
    VisitedPage("police", "/search?from=rubbish", status=400),
    VisitedPage("police", "/no/such/page", status=404),
    VisitedPage("police", "/incidents/no-such-incident", status=404),
    VisitedPage("reviewer", "/reviews", status=403),
)
NO_PAGES = ("/static/{name}", "/stream", "/sign-in/begin", "/sign-in/callback", "/reviews/{id}", "/{unknown:.*}")
"""Routes for GET that are no pages of their own. A match review by its address shows the same button as the list."""
