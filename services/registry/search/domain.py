"""What a search for people and orders asks, and which names and telephone numbers it matches. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from services.registry.matching import blocking
from services.registry.matching.compare import Person

MAX_FOUND = 20
"""Maximum number of records of an answer. Each one is a disclosure, so a search must be narrow."""


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """A search: exactly one of name, phone and record id is set."""

    name: str = ""
    birth_date: date | None = None
    """Only with a name: the date of birth that a record must have."""
    phone: str = ""
    record_id: str = ""

    @property
    def finds_persons(self) -> bool:
        """Whether the search can find protected persons: their records have no date of birth and no searchable telephone number."""
        return bool(self.record_id) or (bool(self.name) and self.birth_date is None)

    @property
    def keys(self) -> frozenset[str]:
        """Match keys of the name or telephone number; at least one of them is among the keys of a record that is found."""
        prefix = "name:" if self.name else "phone:"
        person = Person(names=(self.name,) if self.name else (), phones=(self.phone,) if self.phone else ())
        return frozenset(key for key in blocking.keys(person) if key.startswith(prefix))

    def matches(self, name: str) -> bool:
        """Whether a name is the one that is searched, also in another spelling."""
        return bool(self.keys & blocking.keys(Person(names=(name,))))
