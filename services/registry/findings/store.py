"""Findings in the database, as one transaction sees them."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from services.registry.findings.domain import Closing, ReviewFinding
from services.registry.findings.tables import findings
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import DataKey, Vault
from services.registry.traces.tables import trace_facts


def is_known(connection: sa.Connection, incident_id: str) -> bool:
    """Whether a trace knows an alert of an incident."""
    alerts = (trace_facts.c.incident_id == incident_id) & trace_facts.c.fact_id.like("alert/%")
    return bool(connection.execute(sa.select(sa.exists().where(alerts))).scalar())


def add(connection: sa.Connection, vault: Vault, finding: ReviewFinding) -> None:
    """Add a finding."""
    owner = _owner(finding.finding_id)
    content = json.dumps([finding.text, finding.owner]).encode()
    key, sealed = vault.seal_with_new_key(owner, content)
    stored_key = {"owner": owner, "ring": key.ring, "wrapped": key.wrapped}
    connection.execute(sa.insert(data_keys).values({**stored_key, "destroy_at_ms": None, "destroyed_at_ms": None}))
    values = {
        "finding_id": finding.finding_id,
        "incident_id": finding.incident_id,
        "due_on": finding.due_on,
        "made_by": finding.made_by,
        "made_ms": finding.made_ms,
        "sealed": sealed,
    }
    connection.execute(sa.insert(findings).values(values))


def close(connection: sa.Connection, vault: Vault, finding_id: str, *, closing: Closing) -> None:
    """Store the end of a finding."""
    owner = _owner(finding_id)
    [stored] = connection.execute(sa.select(data_keys).where(data_keys.c.owner == owner)).all()
    sealed = vault.seal(owner, closing.outcome.encode(), DataKey(stored.ring, stored.wrapped))
    values = {"closed_ms": closing.at_ms, "closed_by": closing.by, "sealed_outcome": sealed}
    connection.execute(sa.update(findings).where(findings.c.finding_id == finding_id).values(values))


def find(connection: sa.Connection, vault: Vault, finding_id: str) -> ReviewFinding | None:
    """A finding; None if there is none."""
    found = select(connection, vault, findings.c.finding_id == finding_id, limit=1)
    return found[0] if found else None


def select(
    connection: sa.Connection, vault: Vault, condition: sa.ColumnElement[bool], *, limit: int
) -> list[ReviewFinding]:
    """Findings that meet a condition: the open ones by due day, then the closed ones, newest first."""
    owner = sa.literal(f"{findings.name}/").concat(findings.c.finding_id)
    joined = findings.join(data_keys, data_keys.c.owner == owner)
    statement = (
        sa.select(findings, data_keys.c.ring, data_keys.c.wrapped)
        .select_from(joined)
        .where(condition)
        .order_by(findings.c.closed_ms.is_not(None), sa.case((findings.c.closed_ms.is_(None), findings.c.due_on)))
        .order_by(findings.c.closed_ms.desc(), findings.c.finding_id)
        .limit(limit)
    )
    return [_finding(row, vault) for row in connection.execute(statement)]


def forget_before(connection: sa.Connection, made_ms: int) -> None:
    """Delete findings that were made before a moment, and their keys."""
    _forget(connection, sa.select(findings.c.finding_id).where(findings.c.made_ms < made_ms))


def forget_case(connection: sa.Connection, case_id: str) -> None:
    """Delete the findings about the incidents of a joint case whose records are destroyed: their texts may tell of the wearer."""
    alerts = trace_facts.c.fact_id.like("alert/%") & trace_facts.c.fact.contains(f'"{case_id}"', autoescape=True)
    mine = sa.exists().where(trace_facts.c.incident_id == findings.c.incident_id, alerts)
    _forget(connection, sa.select(findings.c.finding_id).where(mine))


def _forget(connection: sa.Connection, old: sa.Select[Any]) -> None:
    ids = list(connection.scalars(old))
    if ids:
        connection.execute(sa.delete(data_keys).where(data_keys.c.owner.in_([_owner(id_) for id_ in ids])))
        connection.execute(sa.delete(findings).where(findings.c.finding_id.in_(ids)))


def _finding(row: sa.Row[Any], vault: Vault) -> ReviewFinding:
    owner, key = _owner(row.finding_id), DataKey(row.ring, row.wrapped)
    text, acts = json.loads(vault.unseal(owner, row.sealed, key))
    closing = None
    if row.closed_ms is not None:
        closing = Closing(row.closed_ms, row.closed_by, vault.unseal(owner, row.sealed_outcome, key).decode())
    return ReviewFinding(
        finding_id=row.finding_id,
        incident_id=row.incident_id,
        text=text,
        owner=acts,
        due_on=row.due_on,
        made_by=row.made_by,
        made_ms=row.made_ms,
        closing=closing,
    )


def _owner(finding_id: str) -> str:
    return KeyOwner(findings.name, finding_id).text
