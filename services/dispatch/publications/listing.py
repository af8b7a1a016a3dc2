"""Numbers the changes of a leg's incidents, so that a reader of the list gets what changed since its last answer, and not all again.

The numbers are kept in memory. After a restart, and after MAX_CHANGED other incidents have changed, a reader has to read the whole
list.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from services.common.rpc.errors import InvalidField

MAX_CHANGED = 20_000
"""Maximum number of changed incidents that are remembered. The incident that changed longest ago is forgotten first."""
_MAX_DIGITS = 18


class ChangedPage(NamedTuple):
    """Incidents that changed after a point."""

    incident_ids: list[str]
    """The incident that changed longest ago comes first."""
    point: str
    """Point up to which the changes are known with this page."""
    has_more: bool
    """Whether other incidents changed after `point`."""


class ListingChanges:
    """Numbered changes of the incidents that one process of a leg lists."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(4)
        """Tells the points of this start from those of other processes and earlier starts."""
        self._number = self._forgotten = 0
        self._changed: OrderedDict[str, int] = OrderedDict()
        """Number of the last change of each incident, ascending."""

    @property
    def point(self) -> str:
        """The present point. Read it before the store, so that no change falls between the two."""
        return self._point(self._number)

    def note(self, incident_ids: Iterable[str]) -> None:
        """Notes that these incidents are listed differently from now on. Call it after the commit."""
        for incident_id in incident_ids:
            self._number += 1
            self._changed[incident_id] = self._number
            self._changed.move_to_end(incident_id)
        while len(self._changed) > MAX_CHANGED:
            self._forgotten = self._changed.popitem(last=False)[1]

    def since(self, point: str, limit: int) -> ChangedPage | None:
        """At most `limit` incidents that changed after a point; None if this process doesn't know the changes since then.

        Raises InvalidField if the text is no point.
        """
        start, _, digits = point.partition("-")
        if not (start.isalnum() and digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
            raise InvalidField(
                "changed_after", f'isn\'t a point of a list: use `changes` of an answer, such as "{self.point}"'
            )
        seen = int(digits)
        if start != self._start or not self._forgotten <= seen <= self._number:
            return None
        changed: list[str] = []
        for incident_id, number in reversed(self._changed.items()):
            if number <= seen:
                break
            changed.append(incident_id)
        page = changed[::-1][:limit]
        if len(page) == len(changed):
            return ChangedPage(page, self.point, has_more=False)
        return ChangedPage(page, self._point(self._changed[page[-1]]), has_more=True)

    def _point(self, number: int) -> str:
        return f"{self._start}-{number}"
