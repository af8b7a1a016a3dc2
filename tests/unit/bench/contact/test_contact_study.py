"""The contact study on a few approaches."""

from __future__ import annotations

from bench.contact import turning


def test_turning_back_spares_dispatches_and_the_response_falls_due_as_ever() -> None:
    approaches = [turning.approach(seed) for seed in range(12)]
    assert all(approach.same_instants for approach in approaches)
    assert all(approach.ignored.messages_ms for approach in approaches), "each one comes within the ring of NOTIFY"
    ignored = sum(approach.ignored.dispatches for approach in approaches)
    obeyed = sum(approach.obeyed.dispatches for approach in approaches)
    assert obeyed < ignored / 2
    assert not any(approach.ignored.is_breach and not approach.ignored.responds_ms for approach in approaches)
