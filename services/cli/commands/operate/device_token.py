"""`tandem device-token`: issue or revoke tokens with which devices such as phones report by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import grpc
import grpc.aio
import typer
import uvloop

from services.cli.calls import Request, Response, call
from services.cli.failure import MISUSED, CommandFailed
from services.cli.simulate.actors import MOJ_RECORDS, NPA_RECORDS
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.registry.device_tokens.domain import MAX_KEEP_OLDER_S
from tandem.registry.v1 import device_token_pb2


def device_token(
    device: Annotated[str, typer.Argument(help="Id of the tag or protective device.")],
    keep_older_for_s: Annotated[
        int, typer.Option(min=0, max=MAX_KEEP_OLDER_S, help="How long older tokens stay valid, seconds.")
    ] = 0,
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke all tokens of the device, and issue none.")] = False,
    *,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Issue and print a token with which a device reports by itself. It is shown only once."""
    if revoke and keep_older_for_s:
        raise CommandFailed("--keep-older-for-s and --revoke exclude each other", MISUSED)
    print(uvloop.run(_ask(mesh.load(folder), device, keep_older_for_s, revoke=revoke)))


async def _ask(running: MeshConnection, device_id: str, keep_older_for_s: int, *, revoke: bool) -> str:
    async with mesh.connect(running) as clients:
        tokens = clients.device_tokens
        if revoke:
            revocation = device_token_pb2.RevokeDeviceTokensRequest(device_id=device_id)
            answer = await _as_its_agency(clients, tokens.RevokeDeviceTokens, revocation)
            return f"tokens revoked: {answer.revoked}"
        issue = device_token_pb2.IssueDeviceTokenRequest(device_id=device_id, keep_older_for_s=keep_older_for_s)
        return (await _as_its_agency(clients, tokens.IssueDeviceToken, issue)).token


async def _as_its_agency(
    clients: Clients, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
) -> Response:
    """Makes a call as the agency that owns the device: the Ministry of Justice, or else the police."""
    try:
        return await call(method, request, clients.identity(MOJ_RECORDS))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise
    return await call(method, request, clients.identity(NPA_RECORDS))
