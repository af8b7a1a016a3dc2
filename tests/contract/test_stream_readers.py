"""Every reader of every stream continues after garbage, a duplicate, a gap and a reused sequence, both while it runs and at its start.

The table of readers must cover the flow table. A new flow or reader fails here until tests/support/stream_readers has an entry with
its test messages and a check of their effects.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stream_readers.mesh import SERVICES, running_readers
from tests.support.stream_readers.phases import PHASES, Phase, Phases, concerns
from tests.support.stream_readers.reader import Reader
from tests.support.stream_readers.table import READERS, UNPARSED, rows_of_the_flow_table

pytestmark = pytest.mark.timeout(600)

CASES = [
    pytest.param(phase, reader, id=f"{phase.name}-{'at start' if phase.at_start else 'running'}-{reader.name}")
    for phase in PHASES
    for reader in READERS
    if concerns(phase, reader)
]


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phases]:
    """The phases on one mesh, which all cases share."""
    with running_readers(tmp_path_factory.mktemp("readers")) as mesh:
        yield Phases(mesh, READERS)


def test_every_reader_of_the_flow_table_has_an_entry() -> None:
    entries = {row for reader in READERS for row in reader.rows}
    assert entries | set(UNPARSED) == rows_of_the_flow_table()
    assert not entries & set(UNPARSED)
    assert len({reader.name for reader in READERS}) == len(READERS)
    assert {reader.service for reader in READERS} - {""} == set(SERVICES)


@pytest.mark.parametrize(("phase", "reader"), CASES)
def test_a_reader_continues_after(phases: Phases, phase: Phase, reader: Reader) -> None:
    assert phases.result(phase, reader) == ""
