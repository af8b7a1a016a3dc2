"""Where the review page answers the questions of docs/explanation/review.md."""

from __future__ import annotations

ANSWERS = {
    "When was the order known to each side?": "[aria-labelledby=h-trace] table:last-of-type tbody tr",
    "Which position decided?": "[aria-labelledby=h-decision] details tbody tr",
    "By which rules, and would the same be decided today?": "[aria-labelledby=h-decision] details dd code",
    "Why not earlier?": "[aria-labelledby=h-decision] form[action$='/earlier']",
    "How long did each part take?": "#waterfall tbody tr",
    "What was late?": ".expected tbody tr",
    "Where was everybody?": "#events li",
    "Who was told, and when?": "#waterfall tr[data-leg=warning]",
    "Who went, and what became of it?": "[aria-labelledby=h-timeline] .history li",
    "Who saw the location, or the records?": "[aria-labelledby=h-ledger] tbody tr",
    "Can it be given to a court?": "#make-document",
    "What follows from it?": "#new-finding",
    "Was it an exception, over all incidents?": "nav a[href='/statistics']",
    "Was it live?": "[aria-labelledby=h-incident] .facts",
}
"""Selector on the review page of the answer to each question. An exercise has its label above the facts."""
BY_COMMAND_ALONE = ("Was the wearer followed, and was the race looked at?",)
"""Questions that the bundle of evidence answers alone: on a page, the moment would tell the other agency how far the wearer is."""
