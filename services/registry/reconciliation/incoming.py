"""The agencies' lists while they come in, with bounds on the streams of a caller and on the records that are held in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.common.rpc.errors import InvalidField, TooMuchInProgress
from services.registry.domain import ListedKind
from services.registry.reconciliation.domain import Agency, Listed

MAX_STREAMS = 2
"""Maximum number of lists of one caller at a time: the one that is compared, and its successor."""
MAX_RECORDS = 500_000
"""Maximum number of records in an agency's list, and in all its lists that are held at a time: some 200 MB an agency."""
RETRY_AFTER_S = 10.0


class IncomingList:
    """One agency's list, as far as it has come in."""

    def __init__(self, lists: IncomingLists, agency: Agency) -> None:
        self._lists = lists
        self._agency = agency
        self._records: dict[tuple[ListedKind, str], Listed] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[Listed]:
        """The records so far, in the order in which they came."""
        return list(self._records.values())

    def add(self, part: Sequence[Listed]) -> None:
        """Add a part of the list. Raises InvalidField for a repeated record or a list that is too long, and TooMuchInProgress."""
        if len(self) + len(part) > self._lists.max_records:
            raise InvalidField("records", f"a list must hold at most {self._lists.max_records}")
        self._lists.require_room(self._agency, len(part))
        for n, record in enumerate(part):
            key = record.kind, record.record_id
            if key in self._records:
                raise InvalidField(f"records[{n}].record_id", "is listed twice")
            self._records[key] = record
            self._lists.held[self._agency] += 1


class IncomingLists:
    """All lists that are held in memory, from the first part until the last answer."""

    def __init__(self, *, max_streams: int = MAX_STREAMS, max_records: int = MAX_RECORDS) -> None:
        self.max_records = max_records
        self.held: Counter[Agency] = Counter()
        """Number of records that are held, by agency."""
        self._max_streams = max_streams
        self._streams: Counter[str] = Counter()

    @contextmanager
    def begin(self, caller_id: str, agency: Agency) -> Iterator[IncomingList]:
        """A new list of a caller, which is forgotten at the end. Raises TooMuchInProgress if the caller has too many."""
        if self._streams[caller_id] >= self._max_streams:
            raise TooMuchInProgress(
                f"a caller may have at most {self._max_streams} lists in progress: end one of them first", RETRY_AFTER_S
            )
        incoming = IncomingList(self, agency)
        self._streams[caller_id] += 1
        try:
            yield incoming
        finally:
            self.held[agency] -= len(incoming)
            self._streams[caller_id] -= 1
            if not self._streams[caller_id]:
                del self._streams[caller_id]

    def require_room(self, agency: Agency, records: int) -> None:
        """Raises TooMuchInProgress unless an agency's lists may hold so many records more."""
        if self.held[agency] + records > self.max_records:
            raise TooMuchInProgress(
                f"an agency's lists in progress may hold at most {self.max_records} records together: end one of them first",
                RETRY_AFTER_S,
            )
