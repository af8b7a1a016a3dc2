"""Why a response wasn't decided earlier: the reports before a decision, each with its probability and the rule that held it back.

`tandem explain` refolds the log for it, so the page shows the fold's own evaluations. It reads positions, which is a disclosure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.console.domain.people import Role
from services.console.guard import Ask, RouteGuard
from services.console.pages import assets
from services.console.review.mesh_commands import CommandRefused, MeshCommands, refused
from services.console.review.views import id_of

ALERT = "alert-"
"""Beginning of the ids of alerts."""


class ReportBefore(NamedTuple):
    """A report before the decision, and what the decision made of it."""

    sequence: int
    """Sequence of its entry in the log."""
    arrived_ms: int
    device_id: str
    probability: float | None
    """Probability that the wearer was inside the ring, 0 to 1; None if no position could be inside."""
    distance_m: float | None
    held_back_by: str
    """Name of the rule that held the entry back; empty if the ring was entered already."""


class EarlierPages:
    """The page of the reports before a decision, for reviewers."""

    def __init__(self, guard: RouteGuard, commands: MeshCommands) -> None:
        self._guard, self._commands = guard, commands

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [self._guard.post("/incidents/{id}/earlier", {Role.REVIEWER}, self.earlier)]

    async def earlier(self, ask: Ask) -> web.StreamResponse:
        """Shows the reports before an alert. The ledger records the disclosure first."""
        incident_id, alert_id = id_of(ask), ask.form.get("alert", "")
        try:
            fields.required_id("alert", alert_id)
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        if not alert_id.startswith(ALERT):
            raise web.HTTPBadRequest(
                text=f"400: alert: must be the id of an alert (example: {ALERT}78681e66495df3b4cd06)"
            )
        grounds = {
            "--legal-basis": ask.form.get("legal_basis", ""),
            "--purpose": ask.form.get("purpose", ""),
            "--reviewer": self._commands.reviewer(ask.user),
        }
        options = (alert_id, "--positions", "--json", *(f"{option}={value}" for option, value in grounds.items()))
        try:
            outcome = await self._commands.run("explain", options)
            if not outcome.output:  # a fold that differs is shown, although the command counts it as a failure
                raise outcome.refusal
        except CommandRefused as refusal:
            return refused(ask, refusal)
        explained = json.loads(outcome.output)
        return assets.page(
            ask,
            "earlier.html",
            path=f"/incidents/{incident_id}",
            incident_id=incident_id,
            alert_id=alert_id,
            is_same=explained["again"] == "SAME",
            reports=earlier_reports(explained["earlier"]),
        )


def earlier_reports(found: Sequence[Mapping[str, Any]]) -> list[ReportBefore]:
    """The reports of `tandem explain --json`, the newest first."""
    return [
        ReportBefore(
            sequence=report["sequence"],
            arrived_ms=times.from_rfc3339(report["arrived"]),
            device_id=report["device_id"],
            probability=report["probability"],
            distance_m=report["distance_m"],
            held_back_by=report["held_back_by"] or "",
        )
        for report in reversed(found)
    ]
