"""Index of the shares that one evaluator serves. The evaluator tells it of each applied entry, and it marks the shares that may have
changed. So a share costs nothing while there is no news of it, and a report of a device that nobody watches costs one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from services.geofence.disclosures import OpenShare
from services.geofence.domain.alerts import Alert, Output
from services.geofence.domain.entries import (
    Body,
    Case,
    EquipmentReport,
    FoldVersion,
    Heard,
    Positions,
    Presences,
    Rules,
    Tick,
)
from services.geofence.domain.sharing import KnownPosition, PositionShare


@dataclass(slots=True, eq=False)
class LiveShare:
    """A share that a stream follows at present."""

    number: int
    """The caller's number."""
    right: PositionShare
    legal_basis: str
    opened: OpenShare
    watched: WatchedShares
    mark: Callable[[LiveShare], None]
    """Tells the stream to check the share."""
    devices: tuple[str, ...] = ()
    """Devices under which the share is indexed."""
    sent: KnownPosition | None = None
    """The last position that was sent."""
    next_s: float = 0.0
    """When the next position may be sent, seconds of the event loop's clock."""
    is_announced: bool = False
    """Whether the caller was told that the share is open."""
    is_limited: bool = False
    """Whether the share waits for `next_s`."""
    is_lost: bool = False
    """Whether the state that the share rests on was dropped."""


_Shares = dict[LiveShare, None]
"""Shares in the order in which they were opened. A set would serve them in the order of their addresses, which differs each time."""


class WatchedShares:
    """The shares of one evaluator, by what may change them."""

    def __init__(self) -> None:
        self._shares: _Shares = {}
        self._by_device: dict[str, _Shares] = {}
        self._by_case: dict[str, _Shares] = {}
        self._by_wearer: dict[str, _Shares] = {}

    def add(self, share: LiveShare, devices: tuple[str, ...]) -> None:
        """Adds a share of a subject that these devices locate."""
        self._shares[share] = None
        self._by_case.setdefault(share.right.case_id, {})[share] = None
        self._by_wearer.setdefault(share.right.wearer_id, {})[share] = None
        self._index(share, devices)

    def reindex(self, share: LiveShare, devices: tuple[str, ...]) -> None:
        """Notes that other devices locate the subject of a share now."""
        if devices != share.devices:
            self._index(share, devices)

    def remove(self, share: LiveShare) -> None:
        """Removes a share."""
        self._shares.pop(share, None)
        _discard(self._by_case, share.right.case_id, share)
        _discard(self._by_wearer, share.right.wearer_id, share)
        self._index(share, ())

    def _index(self, share: LiveShare, devices: tuple[str, ...]) -> None:
        for device_id in share.devices:
            _discard(self._by_device, device_id, share)
        for device_id in devices:
            self._by_device.setdefault(device_id, {})[share] = None
        share.devices = devices

    def note(self, body: Body, outputs: Sequence[Output]) -> None:
        """Marks the shares that an applied entry and its outputs may have changed."""
        if not self._shares:
            return
        match body:
            case Positions():
                self._mark_devices(body.device_ids)
            case Case():
                self._mark(self._by_case.get(body.case_id, ()))
                self._mark_devices(body.device_ids)  # a device that changes hands has no position any more
            case FoldVersion() | Heard() | Presences() | EquipmentReport() | Rules() | Tick():
                pass
            case _:
                assert_never(body)
        for output in outputs:
            if isinstance(output, Alert):  # an incident opens, goes on for another case, or ends with an alert
                self._mark(self._by_wearer.get(output.wearer_id, ()))

    def drop(self) -> None:
        """Notes that the evaluator's state is dropped. None of its shares goes on."""
        for share in self._shares:
            share.is_lost = True
        self.mark_all()

    def mark_all(self) -> None:
        """Marks all shares."""
        self._mark(self._shares)

    def _mark_devices(self, device_ids: Sequence[str]) -> None:
        if self._by_device.keys().isdisjoint(device_ids):
            return
        for device_id in device_ids:
            self._mark(self._by_device.get(device_id, ()))

    def _mark(self, shares: Iterable[LiveShare]) -> None:
        for share in shares:
            share.mark(share)


def _discard(index: dict[str, _Shares], key: str, share: LiveShare) -> None:
    shares = index.get(key, {})
    shares.pop(share, None)
    if not shares:
        index.pop(key, None)
