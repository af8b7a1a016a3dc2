"""Last sent routes and tokens of the devices in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import Connection

from services.registry.device_tokens.domain import DeviceToken
from services.registry.routes.domain import StoredRoute
from services.registry.working_set.cached_rows import Lookup, read_rows

_DEVICE_ID = Lookup("device_id")


class RouteRows:
    """The last sent routes as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._routes: dict[str, StoredRoute | None] = {}
        self.sent: dict[str, tuple[StoredRoute, int]] = {}
        """Routes that are sent, each with the day of mesh time, by device id."""

    def of(self, device_ids: Collection[str]) -> dict[str, StoredRoute]:
        """The last sent routes of these devices, by device id. Devices without a route are omitted."""
        unknown = [device_id for device_id in dict.fromkeys(device_ids) if device_id not in self._routes]
        if unknown:
            self._routes |= dict.fromkeys(unknown)
            select = "SELECT device_id, version, route FROM routes WHERE"
            for device_id, version, route in read_rows(self._connection, select, _DEVICE_ID, values=unknown):
                self._routes[device_id] = StoredRoute(version, bytes(route))
        return {device_id: route for device_id in device_ids if (route := self._routes[device_id])}

    def put(self, sent: Mapping[str, StoredRoute], day: int) -> None:
        """Put the last sent routes by device id, and the day of mesh time on which they are sent."""
        self._routes |= sent
        self.sent |= {device_id: (route, day) for device_id, route in sent.items()}


class TokenRows:
    """The tokens of the devices as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tokens: dict[str, list[DeviceToken]] = {}
        self.replaced: dict[str, Sequence[DeviceToken]] = {}
        """All tokens of the devices whose tokens change, by device id."""

    def of(self, device_ids: Iterable[str]) -> dict[str, list[DeviceToken]]:
        """Tokens of these devices, oldest first, including expired ones, by device id. Devices without tokens are omitted."""
        wanted = list(dict.fromkeys(device_ids))
        unknown = [device_id for device_id in wanted if device_id not in self._tokens]
        if unknown:
            self._tokens |= {device_id: [] for device_id in unknown}
            select = "SELECT device_id, id, sha256, valid_until_ms FROM device_tokens WHERE"
            rows = read_rows(self._connection, select, _DEVICE_ID, values=unknown)
            for device_id, _, sha256, valid_until_ms in sorted(rows, key=lambda row: int(row[1])):
                self._tokens[device_id].append(DeviceToken(bytes(sha256), valid_until_ms))
        return {device_id: list(tokens) for device_id in wanted if (tokens := self._tokens[device_id])}

    def put(self, tokens: Mapping[str, Sequence[DeviceToken]]) -> None:
        """Replace all tokens of devices with these tokens, oldest first, by device id."""
        self._tokens |= {device_id: list(valid) for device_id, valid in tokens.items()}
        self.replaced |= tokens
