"""The list of the console's pages that browser tests visit. A new page gets its line here; a test fails where one is missing."""

from __future__ import annotations

from typing import NamedTuple


class VisitedPage(NamedTuple):
    """A page as one role sees it."""

    role: str
    """Role that visits it; empty for nobody who is signed in."""
    path: str
    """Path, with {incident}, {order} and {tag} for those of the demo."""
    shows: str = "main h1, main h2"
    """Element that is there when the page is whole."""
    clicks: tuple[str, ...] = ()
    """Elements that are clicked one after another, once the page is open."""
    status: int = 200
    shot: str = ""
    """Name of the picture for the documentation, in Korean and dark; empty for none."""


PAGES = (
    VisitedPage("", "/sign-in"),
    VisitedPage(
        "police", "/", shows="body:has(#incidents .demand-RESPOND) #map[data-fitted]", shot="console-live-dark-ko"
    ),
    VisitedPage("probation", "/", shows="#incidents li .demand-RESPOND"),
    VisitedPage("reviewer", "/", shows="#incidents li .demand-RESPOND"),
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
    VisitedPage("police", "/statistics", shows="#h-times"),
    VisitedPage("reviewer", "/statistics", shows="#h-times"),
    VisitedPage("reviewer", "/findings", shows="#h-findings"),
    VisitedPage("police", "/handover", shows="#h-write"),
    VisitedPage("probation", "/handover", shows="#h-write"),
    VisitedPage("police", "/people", shows="#h-search"),
    VisitedPage("police", "/roster", shows="#h-units"),
    VisitedPage("police", "/watched-devices", shows="#h-watched"),
    VisitedPage("probation", "/watched-devices/{tag}", shows="#h-now"),
    VisitedPage("police", "/watched-devices/{tag}", status=404),
    VisitedPage("police", "/orders/{order}", shows="#h-sent"),
    VisitedPage("police-records", "/records"),
    VisitedPage("police-records", "/records/order"),
    VisitedPage("police-records", "/records/order-extension"),
    VisitedPage("police-records", "/records/order-end"),
    VisitedPage("police", "/search?from=rubbish", status=400),
    VisitedPage("police", "/no/such/page", status=404),
    VisitedPage("police", "/incidents/no-such-incident", status=404),
    VisitedPage("reviewer", "/reviews", status=403),
)
NO_PAGES = (
    *(
        "/static/{name}",
        "/stream",
        "/stream/bar",
        "/sign-in/begin",
        "/sign-in/callback",
        "/reviews/{id}",
        "/{unknown:.*}",
    ),
    *("/incidents/{id}/card", "/incidents/{id}/candidates", "/statistics.csv"),
)
"""Routes for GET that are no pages of their own. A match review by its address shows the same button as the list."""
