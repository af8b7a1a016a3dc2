"""What field may call: the methods of its two apps, and no other on any service."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc

from services.client import mesh
from services.common.rpc.gatekeeper import allowed_roles
from services.common.rpc.identity import FIELD
from tandem.common.v1 import access_pb2
from tests.support.common.methods import code_of, methods
from tests.support.field.scene import Scene

ALLOWED = {
    "CheckSignIn",
    *("Enrol", "FindPhone", "WatchPhoneNotices", "ListPhoneNotices", "RecordPhoneReceipt", "ReadRegionMap"),
    *("SignInUnit", "SignOutUnit", "WatchUnits", "GetDuty", "ReportDuty", "AnswerTask", "FollowTask", "RaiseDistress"),
    *("ReportPhoneState", "ListNotifiedIncidents", "ReadSummary"),
}
"""The only methods that field may call."""


async def are_those_of_its_apps_alone(scene: Scene) -> None:
    """Calls each method of each service as field."""
    tried: dict[str, set[grpc.StatusCode]] = {}
    now = scene.mesh.now
    async with AsyncExitStack() as stack:
        channels = {name: await stack.enter_async_context(mesh.channel(now, name)) for name in now.addresses}
        for method in methods():
            service = method.containing_service.full_name
            part = service.split(".")[1]
            for name in (name for name in channels if name.startswith(part)):
                path = f"/{service}/{method.name}"
                kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
                made = getattr(channels[name], kind)(path)
                code = await code_of(made, method.client_streaming, scene.clients.identity(FIELD))
                if code is not grpc.StatusCode.UNIMPLEMENTED:
                    tried.setdefault(method.name, set()).add(code)
                if method.name not in ALLOWED:
                    assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED), (path, code)
                    assert access_pb2.ROLE_FIELD not in allowed_roles(path)
    assert len(tried) > 60
    for name in ALLOWED - {"Enrol", "FindPhone", "ReadRegionMap"}:  # of the warning leg alone
        assert grpc.StatusCode.PERMISSION_DENIED in tried[name]
    for name in ALLOWED:
        assert tried[name] - {grpc.StatusCode.PERMISSION_DENIED}
