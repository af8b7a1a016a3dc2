"""Registrations of devices that ingest knows, without the bucket that they come from."""

from __future__ import annotations

from typing import Any

from services.common.clock import MeshClock
from services.ingest.admission.routes import Routes, count_reporting
from tandem.common.v1 import log_pb2


def test_beacons_and_revoked_devices_do_not_report() -> None:
    nothing: Any = None
    routes = Routes(nothing, MeshClock(), 1)
    assert count_reporting(routes) == 0
    devices = {
        "tag-1": log_pb2.DeviceRoute(),
        "tag-2": log_pb2.DeviceRoute(revoked=True),
        "beacon-1": log_pb2.DeviceRoute(identifier_sha256=bytes(32)),
    }
    for device_id, route in devices.items():
        route.subject_id = "w1"
        route.partitions.append(0)
        routes._apply(device_id, route.SerializeToString())
    assert count_reporting(routes) == 1
