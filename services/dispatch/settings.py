"""Settings of one leg."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from services.common.settings import LOOPBACK, CommonSettings
from services.dispatch.domain.escalation import Deadlines

PORTS = {"probation": 7404, "police": 7405, "warning": 7406}
METRICS_PORTS = {"probation": 7444, "police": 7445, "warning": 7446}
ACKNOWLEDGE_WITHIN_S = {"probation": 30.0, "police": 30.0, "warning": 10.0}


class DispatchSettings(CommonSettings):
    """Read from the environment but for `leg`. Ports and deadline have defaults of their own for each leg."""

    leg: Literal["probation", "police", "warning"]
    """Which half of the response this process is."""
    acknowledge_within_s: float = Field(gt=0, le=3600)
    """How long the desk has to acknowledge an offer, seconds of mesh time: 30 for people, 10 for the gateway."""
    webhooks: Path | None = None
    """File that names those who get this leg's steps by webhook, with their keys; without it nobody does."""
    link_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port of the links with which those on the road take an offer; without it there are none."""
    link_url: str = ""
    """How that port is reached from the road, such as https://tandem.example; needed with `link_port`."""
    warning_gateways: Path | None = None
    """Warning leg: file that names the gateways which reach protected persons, with their keys, in the form of `webhooks`."""
    warning_key: Path | None = None
    """Warning leg: file of the private keys that open contacts; without it, one in `data_dir`. A folder that can't be written to must
    hold the public ones too."""
    receive_within_s: float = Field(default=5.0, gt=0, le=3600)
    """How long the desk's machine has to say that it has an offer, seconds of mesh time, where there is a roster."""
    other_leg_within_s: float = Field(default=10.0, gt=0, le=3600)
    """How long another leg has to show a step of what an alert demands of both, seconds of mesh time; then the desk is told."""
    probation_database_url: SecretStr = SecretStr("")
    """postgresql://role@host/database of the probation leg, whose role has a schema of its own; where it is empty, the database is
    an SQLite file in `data_dir`."""
    police_database_url: SecretStr = SecretStr("")
    """The same of the police leg."""
    warning_database_url: SecretStr = SecretStr("")
    """The same of the warning leg."""
    metrics_port: int = Field(ge=0, le=65535)
    """TCP port of /metrics, /healthz and /readyz."""
    dispatch_within_s: float = Field(default=60.0, gt=0, le=3600)
    """How long the desk has from then until a unit is told to go, where there is a roster."""
    osrm_url: str = Field(default="", pattern=r"^(https?://[^\s?#]+)?$")
    """The agency's own service of OSRM's table protocol, for travel times by road; empty for the great circle. It is told where
    destinations are, so it must be on loopback or behind https."""

    geofence: str = ""
    """The evaluators, as a gRPC target such as `dns:///geofence:7403` or `ipv4:127.0.0.1:7403,127.0.0.1:7413`: where targets are is
    asked of them. Without it the leg follows nobody; on loopback or with certificates only."""
    ingest: str = ""
    """Ingest, likewise: the probation leg has it tell the tag to report often while somebody goes to the wearer."""

    @property
    def deadlines(self) -> Deadlines:
        """The same in milliseconds."""
        return Deadlines(
            *(
                round(1000 * s)
                for s in (
                    *(self.acknowledge_within_s, self.receive_within_s, self.dispatch_within_s),
                    self.other_leg_within_s,
                )
            )
        )

    @property
    def database_url(self) -> str:
        """PostgreSQL's URL of this leg; empty where it has none."""
        urls = {
            "probation": self.probation_database_url,
            "police": self.police_database_url,
            "warning": self.warning_database_url,
        }
        return urls[self.leg].get_secret_value()

    @property
    def database(self) -> Path | str:
        """The leg's own SQLite file, or PostgreSQL's URL."""
        return self.database_url or self.data_dir / f"dispatch-{self.leg}.sqlite3"

    @property
    def exchange_database(self) -> Path:
        """The SQLite file of what is to be delivered."""
        return self.data_dir / f"exchange-{self.leg}.sqlite3"

    @property
    def warning_database(self) -> Path:
        """Warning leg: the SQLite file of what protected persons are told."""
        return self.data_dir / "warning.sqlite3"

    @property
    def warning_key_file(self) -> Path:
        """Warning leg: the private keys that open contacts, made at the first start; the public ones stand beside it."""
        return self.warning_key or self.data_dir / "warning.key"

    @property
    def link_key(self) -> Path:
        """The key of this leg's links, made at the first start."""
        return self.data_dir / f"links-{self.leg}.key"

    @property
    def evidence(self) -> Path:
        """Folder of what the leg's incidents rest on."""
        return self.data_dir / f"evidence-{self.leg}"

    @model_validator(mode="after")
    def _refuse_plaintext_to_the_map(self) -> Self:
        parts = urlsplit(self.osrm_url)
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError(f"TANDEM_OSRM_URL names {parts.hostname}, which isn't loopback: only https:// is taken")
        return self

    @model_validator(mode="after")
    def _refuse_gateways_that_cannot_answer(self) -> Self:
        if self.warning_gateways is not None and (self.link_port is None or not self.link_url):
            raise ValueError(
                "TANDEM_WARNING_GATEWAYS needs TANDEM_LINK_PORT and TANDEM_LINK_URL: receipts come back there"
            )
        return self

    @model_validator(mode="after")
    def _refuse_plaintext_to_services(self) -> Self:
        self.refuse_plaintext_to("geofence", "ingest")
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_leg(cls, given: dict[str, Any]) -> dict[str, Any]:
        leg = given.get("leg", "")
        defaults = {
            "port": PORTS.get(leg),
            "metrics_port": METRICS_PORTS.get(leg),
            "acknowledge_within_s": ACKNOWLEDGE_WITHIN_S.get(leg),
        }
        return {name: value for name, value in defaults.items() if value is not None} | given


def for_leg(leg: str) -> DispatchSettings:
    """The settings of a leg, from the environment."""
    return DispatchSettings.model_validate({"leg": leg})
