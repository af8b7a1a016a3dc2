"""Reference of the articles that allow a disclosure: what each allows to read, to follow live, and to tell a protected person."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from services.common.privacy.grounds import LEGAL_BASES, LegalBasis, Purpose, RecordKind
from services.geofence.domain import sharing
from tools.reference.markdown import code, codes, page, table

_KOREA = timezone(timedelta(hours=9))
_KINDS = {
    RecordKind.WEARER: "wearer",
    RecordKind.PROTECTED_PERSON: "protected person",
    RecordKind.ORDER: "order",
}
"""Kinds of records that somebody may read or follow, as the page calls them."""


def _kinds(kinds: frozenset[RecordKind]) -> str:
    if kinds.issuperset(_KINDS):
        return "all"
    return ", ".join(name for kind, name in _KINDS.items() if kind in kinds) or "nothing"


def _followed(basis: LegalBasis, allowed: dict[RecordKind, frozenset[str]]) -> str:
    return _kinds(frozenset(kind for kind, bases in allowed.items() if basis.code in bases))


def _since(basis: LegalBasis) -> str:
    return (
        datetime.fromtimestamp(basis.in_force_from_ms / 1000, _KOREA).date().isoformat()
        if basis.in_force_from_ms
        else ""
    )


def render() -> str:
    """The page."""
    reading = [
        (
            code(basis.code),
            basis.article,
            _kinds(basis.kinds),
            _followed(basis, sharing.DURING_AN_INCIDENT),
            _followed(basis, sharing.UNDER_AN_ORDER),
            _since(basis),
        )
        for basis in LEGAL_BASES
        if basis.notice is None
    ]
    notices = [
        (
            code(basis.code),
            basis.article,
            code(basis.notice.order_type),
            code(basis.notice.tag_basis.value),
            basis.notice.needs,
        )
        for basis in LEGAL_BASES
        if basis.notice is not None
    ]
    return page(
        "Legal bases",
        "Each read of a record, each live share of a position and each evidence bundle names the article that allows it, by its "
        "code: `--legal-basis` of the `tandem` command, `legal_basis` of the contracts. An article that isn't listed here allows "
        "nothing. A role limits it further: probation follows the wearer alone ([law](../explanation/law.md), "
        "[privacy](../explanation/privacy.md)).",
        "## Reading and following",
        "*Records* are what may be read: a wearer's, a protected person's, an order's. *Live* is whose position may be followed, and "
        "*all* there includes the places that an order protects.",
        table(("code", "article", "records", "live during an incident", "live without one", "in force from"), reading),
        "## Notices of the Ministry to a protected person",
        "None of these opens a record. Each needs an order of this type, and a tag that is worn for this reason.",
        table(("code", "article", "order", "reason for the tag", "needs"), notices),
        "## Purposes",
        f"Beside the article stands the purpose, `--purpose` or `purpose`: {codes(purpose.value for purpose in Purpose)}. "
        "`RETENTION` is the registry's own, for the end of a record's time.",
    )
