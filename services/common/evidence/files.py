"""Copies of evidence on the leg's disk."""

from __future__ import annotations

import gzip
import zlib
from enum import StrEnum
from pathlib import Path

from services.common.evidence import model
from services.common.evidence.model import Evidence
from services.common.messaging import flow
from services.common.storage import durable

_UNREADABLE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError)
"""Errors of a file that is damaged or may not be read."""


class CopyMoment(StrEnum):
    """Moments at which the evidence of an incident is copied, the earliest first."""

    OPENED = "opened"
    """The incident is open. The copy is renewed while it stays open."""
    CLOSED = "closed"
    AMENDED = "amended"
    """Late reports amended an account after the end of the incident."""


class EvidenceFiles:
    """Copies of evidence on disk, one file per incident and moment. Writes are atomic; only the owner may read the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, incident_id: str, moment: CopyMoment) -> bool:
        """Whether the copy of an incident at a moment exists."""
        return self._path(incident_id, moment).exists()

    def load(self, incident_id: str) -> list[Evidence]:
        """Loads all copies of an incident, the earliest first."""
        return [self._read(incident_id, moment) for moment in CopyMoment if self.has(incident_id, moment)]

    def has_alert(self, incident_id: str, moment: CopyMoment, alert_id: str) -> bool:
        """Whether the copy of an incident at a moment exists, can be read and holds this alert. If not, `save` says why."""
        if not self.has(incident_id, moment):
            return False
        try:
            alerts = self._read(incident_id, moment).of(flow.ALERTS.name)
        except _UNREADABLE:
            return False
        return any(record.subject.endswith(f".{alert_id}") for record in alerts)

    def save(self, moment: CopyMoment, evidence: Evidence) -> None:
        """Writes the copy of an incident at a moment durably. Raises OSError.

        An earlier copy at this moment is merged in, because the streams may have lost some of its records since.
        """
        if self.has(evidence.incident_id, moment):
            evidence = model.merged([self._read(evidence.incident_id, moment), evidence])
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(self._path(evidence.incident_id, moment), gzip.compress(evidence.to_bytes(), mtime=0))

    def _read(self, incident_id: str, moment: CopyMoment) -> Evidence:
        return model.of_bytes(gzip.decompress(self._path(incident_id, moment).read_bytes()))

    def _path(self, incident_id: str, moment: CopyMoment) -> Path:
        return self._folder / f"{incident_id}.{moment}.jsonl.gz"
