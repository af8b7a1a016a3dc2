"""gRPC targets of a mesh's services: literal addresses are kept, and several names are resolved."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from services.client.mesh import target_of
from services.common.failure import CommandFailed


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["127.0.0.1:7401"], "ipv4:127.0.0.1:7401"),
        (["127.0.0.1:7403", "127.0.0.1:7413"], "ipv4:127.0.0.1:7403,127.0.0.1:7413"),
        (["[::1]:7401"], "ipv6:[::1]:7401"),
        (["[::1]:7403", "[fd00::2]:7403"], "ipv6:[::1]:7403,[fd00::2]:7403"),
        (["registry:7401"], "dns:///registry:7401"),
        (["geofence:7403", "geofence:7403"], "dns:///geofence:7403"),
        (["geofence.tandem.svc.cluster.local:7403"], "dns:///geofence.tandem.svc.cluster.local:7403"),
    ],
)
def test_a_target_is_made_of_addresses_or_a_name(addresses: list[str], target: str) -> None:
    assert target_of(addresses) == target


def test_several_names_are_resolved_because_grpc_takes_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"geofence-0.geofence": "10.1.0.4", "geofence-1.geofence": "10.1.0.5", "10.1.0.6": "10.1.0.6"}

    def resolve(host: str, port: str, *_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], int(port)))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    both = ["geofence-0.geofence:7403", "geofence-1.geofence:7403", "10.1.0.6:7403"]
    assert target_of(both) == "ipv4:10.1.0.4:7403,10.1.0.5:7403,10.1.0.6:7403"
    with pytest.raises(CommandFailed, match=r"geofence-2\.geofence isn't the name of a machine"):
        target_of([*both, "geofence-2.geofence:7403"])
