"""Every reader of every stream goes on behind garbage, a duplicate, a gap and a reused sequence, while it runs and at its start.

The table of readers is held against the flow table: a new flow or a new reader fails here until it says what it is given and how
its answer is seen (tests/support/stream_readers).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stream_readers.mesh import SERVICES, running_readers
from tests.support.stream_readers.phases import PHASES, Phase, Phases, concerns
from tests.support.stream_readers.reader import Reader
from tests.support.stream_readers.table import NOBODY, READERS, rows_of_the_flow_table

pytestmark = pytest.mark.timeout(600)

CASES = [
    pytest.param(phase, reader, id=f"{phase.name}-{'at start' if phase.at_start else 'running'}-{reader.name}")
    for phase in PHASES
    for reader in READERS
    if concerns(phase, reader)
]


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phases]:
    """One mesh for all cases."""
    with running_readers(tmp_path_factory.mktemp("readers")) as mesh:
        yield Phases(mesh, READERS)


def test_every_reader_of_the_flow_table_has_an_entry() -> None:
    entries = {row for reader in READERS for row in reader.rows}
    assert entries | set(NOBODY) == rows_of_the_flow_table()
    assert not entries & set(NOBODY)
    assert len({reader.name for reader in READERS}) == len(READERS)
    assert {reader.service for reader in READERS} - {""} == set(SERVICES)


@pytest.mark.parametrize(("phase", "reader"), CASES)
def test_a_reader_goes_on_behind(phases: Phases, phase: Phase, reader: Reader) -> None:
    assert phases.result(phase, reader) == ""
