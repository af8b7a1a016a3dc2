"""Table of the processes of `tandem up`."""

from __future__ import annotations

from services.local.processes import CONSOLE_PROCESS, FIELD_PROCESS, SERVICES


def test_processes_on_the_way_to_the_offers_go_before_the_others() -> None:
    niceness = {service.name: service.niceness for service in (*SERVICES, CONSOLE_PROCESS, FIELD_PROCESS)}
    response = {name for name, nice in niceness.items() if nice == 0}
    assert response == {
        "ingest", "geofence-0", "geofence-1", "dispatch-probation", "dispatch-police", "dispatch-warning", "field",
    }  # fmt: skip
    assert 0 < niceness["console"] < niceness["registry"]
