"""Folds pickled logs and prints one digest for each log and spacing.

Run as `python -m tests.support.geofence.fold_digests FILE [SPACING...]`.

It needs only the standard library and the pure domain, so any interpreter can run it. A spacing is the number of entries between two
restarts from an encoded state; 0 means no restart.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from services.geofence.domain import codec, fold
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State


def digest(entries: Sequence[Entry], spacing: int) -> str:
    """SHA-256 of all outputs of the fold of a log, and of its final state."""
    state, hashed = State(0, "log"), hashlib.sha256()
    for number, entry in enumerate(entries, 1):
        for output in fold.step(state, entry):
            hashed.update(json.dumps([type(output).__name__, asdict(output)], default=_value).encode())
        if spacing and number % spacing == 0:
            state = codec.decode(codec.encode(state))
    hashed.update(codec.encode(state))
    return hashed.hexdigest()


def _value(value: object) -> object:
    assert isinstance(value, Enum), value
    return value.value


if __name__ == "__main__":
    logs = pickle.loads(Path(sys.argv[1]).read_bytes())  # noqa: S301  # a file that the test wrote
    for log in logs:
        print(*(digest(log, int(spacing)) for spacing in sys.argv[2:]))
