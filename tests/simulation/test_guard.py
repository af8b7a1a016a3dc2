"""The guard finds what would make two runs of a seed differ."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from services.dispatch.domain.leg import Leg
from services.geofence.domain.state import State
from tests.simulation.kernel.guard import Guard, hashes_by_address, sets_by_address
from tests.simulation.kernel.world import World


class Plain:
    """Hashes by its address."""


@pytest.mark.parametrize(
    ("contact", "named"),
    [
        (time.time, "time.time"),
        (time.monotonic_ns, "time.monotonic_ns"),
        (lambda: datetime.now(UTC), "datetime.now"),
        (lambda: os.urandom(1), "os.urandom"),
        (random.Random, "a seed from the machine"),
        (lambda: threading.Thread(target=int).start(), "a thread"),
    ],
)
def test_a_contact_with_the_machine_is_found(contact: Callable[[], object], named: str) -> None:
    guard = Guard(World(0))
    guard.start()
    try:
        contact()
    finally:
        guard.stop()
    assert [found for found in guard.found if found.startswith(named)], guard.found


def test_a_set_in_the_order_of_addresses_is_found() -> None:
    kept = {Plain(), Plain()}
    assert f"a set of {Plain.__module__}.Plain" in list(sets_by_address())
    assert kept


def test_hashes_of_values_are_those_of_their_parts() -> None:
    assert not any(map(hashes_by_address, ("text", 3, b"bytes", Leg.POLICE, ("a", (1, 2.5)), State)))
    assert all(map(hashes_by_address, (Plain(), ("a", Plain()), frozenset({Plain()}))))
    assert hashes_by_address(("a", None)) == (sys.version_info < (3, 12))
