"""Settings of one leg of the response."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from services.common.settings import LegDatabases
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg


class DispatchSettings(LegDatabases):
    """Settings of one leg, read from the environment except `leg`. Default ports and deadlines differ by leg."""

    leg: Leg
    """The leg that this process runs."""
    acknowledge_within_s: float = Field(gt=0, le=3600)
    """How long the desk has to acknowledge an offer, seconds of mesh time: 30 for people, 10 for the gateway."""
    answer_within_s: float = Field(default=10.0, gt=0, le=3600)
    """How long a unit has to answer an offer until the next one is asked as well, seconds of mesh time, but at most
    `acknowledge_within_s`."""
    offer_within_s: float = Field(default=30.0, gt=0, le=3600)
    """How long a unit may accept an offer, seconds of mesh time, but at least `answer_within_s`. Several offers may be open, and the
    first acceptance wins."""
    webhooks: Path | None = None
    """File of the webhook receivers of this leg's steps, with their secrets; without it there are none."""
    link_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port of the links by which units on the road accept an offer; without it there are no links."""
    link_url: str = ""
    """Public URL of `link_port`, such as https://tandem.example; required with `link_port`."""
    warning_gateways: Path | None = None
    """Warning leg: file of the gateways that reach protected persons, with their secrets, in the format of `webhooks`."""
    warning_key: Path | None = None
    """Warning leg: file of the private keys that decrypt contacts; by default a file in `data_dir`. A read-only folder must contain
    the public keys too."""
    receive_within_s: float = Field(default=5.0, gt=0, le=3600)
    """How long the desk's machine has to confirm an offer, seconds of mesh time, where there is a roster."""
    other_leg_within_s: float = Field(default=10.0, gt=0, le=3600)
    """How long another leg has to show a step for an alert that demands both, seconds of mesh time; then the desk is notified."""
    metrics_port: int = Field(ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    dispatch_within_s: float = Field(default=60.0, gt=0, le=3600)
    """How long the desk has from the acknowledgement until a unit has it, and a unit until it goes, seconds of mesh time, where there
    is a roster."""
    depart_within_s: float = Field(default=120.0, gt=0, le=3600)
    """How long a unit has from the order to go until it is on its way, seconds of mesh time; then it is reminded."""
    arrive_within_s: float = Field(default=307.0, gt=0, le=14_400)
    """Travel time of a unit whose position or destination is unknown, seconds of mesh time. A unit is reminded after 1.5 times its
    travel time."""
    word_within_s: float = Field(default=900.0, gt=0, le=14_400)
    """How long a unit on the scene may say nothing, seconds of mesh time; then it is reminded."""
    react_within_s: float = Field(default=60.0, gt=0, le=3600)
    """How long a reminded unit has until its assignment escalates, seconds of mesh time."""
    osrm_url: str = Field(default="", pattern=r"^(https?://[^\s?#]+)?$")
    """URL of the agency's own OSRM table service, for travel times by road; empty for the great circle. The service receives the
    destinations' positions, so it must be on loopback or behind https."""

    geofence: str = ""
    """gRPC target of the evaluators that give the targets' positions, such as `dns:///geofence:7403` or
    `ipv4:127.0.0.1:7403,127.0.0.1:7413`. Without it the leg follows nobody. On loopback or with certificates only."""
    ingest: str = ""
    """gRPC target of ingest, like `geofence`. The probation leg makes tags report often while a unit goes to the wearer."""
    registry: str = ""
    """gRPC target of the registry, like `geofence`. The receivers of `webhooks` get alarms of match reviews that nobody decided."""

    @property
    def deadlines(self) -> Deadlines:
        """Deadlines of an offer's steps, milliseconds."""
        names = [field.name.removesuffix("_ms") for field in fields(Deadlines)]
        return Deadlines(**{f"{name}_ms": round(1000 * getattr(self, f"{name}_within_s")) for name in names})

    @property
    def database_url(self) -> str:
        """PostgreSQL URL of this leg; empty if the leg uses SQLite."""
        return self.leg_databases[self.leg]

    @property
    def database(self) -> Path | str:
        """The leg's SQLite file, or its PostgreSQL URL."""
        return self.database_url or self.data_dir / f"dispatch-{self.leg}.sqlite3"

    @property
    def exchange_database(self) -> Path:
        """SQLite file of the webhook deliveries and links."""
        return self.data_dir / f"exchange-{self.leg}.sqlite3"

    @property
    def warning_database(self) -> Path:
        """Warning leg: SQLite file of the messages to protected persons."""
        return self.data_dir / "warning.sqlite3"

    @property
    def warning_key_file(self) -> Path:
        """Warning leg: file of the private keys that decrypt contacts, made at the first start; the public keys are next to it."""
        return self.warning_key or self.data_dir / "warning.key"

    @property
    def link_key(self) -> Path:
        """File of the key that signs this leg's links, made at the first start."""
        return self.data_dir / f"links-{self.leg}.key"

    @property
    def evidence(self) -> Path:
        """Folder of the evidence of the leg's incidents."""
        return self.data_dir / f"evidence-{self.leg}"

    @model_validator(mode="after")
    def _refuse_plaintext_to_the_map(self) -> Self:
        self.refuse_plaintext_url("osrm_url")
        return self

    @model_validator(mode="after")
    def _refuse_gateways_that_cannot_answer(self) -> Self:
        if self.warning_gateways is not None and (self.link_port is None or not self.link_url):
            raise ValueError(
                "TANDEM_WARNING_GATEWAYS needs TANDEM_LINK_PORT and TANDEM_LINK_URL, where receipts arrive "
                "(example: TANDEM_LINK_PORT=7416 TANDEM_LINK_URL=https://tandem.example)"
            )
        return self

    @model_validator(mode="after")
    def _refuse_plaintext_to_services(self) -> Self:
        self.refuse_plaintext_to("geofence", "ingest", "registry")
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_leg(cls, given: dict[str, Any]) -> dict[str, Any]:
        if (leg := given.get("leg")) not in list(Leg):
            return given  # the field says what is wrong
        policy = Leg(leg).policy
        return {
            "port": policy.port,
            "metrics_port": policy.metrics_port,
            "acknowledge_within_s": policy.acknowledge_within_s,
        } | given


def for_leg(leg: str) -> DispatchSettings:
    """The settings of a leg, from the environment."""
    return DispatchSettings.model_validate({"leg": leg})
