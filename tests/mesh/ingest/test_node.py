"""A head-end in Node.js, made from the protos alone: it reports, reads refusals, and receives and confirms a command."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.common.rpc import server
from services.common.rpc.identity import sign_dev_token
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.common.preloaded import ROOT
from tests.support.ingest.ingest import SECRET, VENDOR, WITHIN_S, IngestMesh, ingest_on_its_own_server

SOURCE = ROOT / "tests" / "node"
INSTALL_WITHIN_S = 90
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")
"""Codes of npm for an unreachable package registry."""
DESK = "spiffe://moj/desk/seoul"
DONE = command_pb2.COMMAND_STATE_RECEIVED


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs the head-end with its packages outside the tree and returns its path."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm here")
    folder = tmp_path_factory.mktemp("node") / "head-end"
    shutil.copytree(SOURCE, folder)
    command = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm took longer than {INSTALL_WITHIN_S} s to fetch packages")
    reason = next((code for code in OFFLINE if code in done.stderr), None)
    if done.returncode and reason:
        pytest.skip(f"npm can't fetch packages: {reason}")
    assert not done.returncode, done.stderr
    return folder / "head_end.js"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestMesh]:
    with ingest_on_its_own_server(tmp_path_factory.mktemp("ingest")) as running:
        yield running


@asynccontextmanager
async def running(program: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        "node", str(program), *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def next_response(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Returns the next response that the head-end got."""
    assert process.stdout
    async with asyncio.timeout(WITHIN_S):
        line = await process.stdout.readline()
    assert line, "it ended"
    response: dict[str, Any] = json.loads(line)
    return response


async def test_a_head_end_in_node_reports_and_obeys(mesh: IngestMesh, program: Path) -> None:
    token = sign_dev_token(VENDOR, SECRET)
    async with mesh.connected() as client, server.channel(mesh.address) as channel:
        await client.route("node-tag")
        desk = ingest_pb2_grpc.CommandServiceStub(channel)
        identity = server.bearer(DESK, SECRET)
        async with running(program, str(ROOT / "protos"), mesh.address, token, "node-tag") as head_end:
            answer = await next_response(head_end)
            assert answer["batch"] == "1"
            assert answer["outcomes"] == ["ACCEPTED", "REFUSED", "REFUSED", "ACCEPTED"]
            assert [(refusal["index"], refusal["field"], refusal["code"]) for refusal in answer["refusals"]] == [
                (1, "positions[1].lat_deg", "REFUSAL_CODE_INVALID"),
                (2, "positions[2].device_id", "REFUSAL_CODE_UNKNOWN_DEVICE"),
            ]

            instruction = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=15))
            order = ingest_pb2.SendCommandRequest(
                command_id="closer", device_id="node-tag", instruction=instruction, valid_for_s=60
            )
            await desk.SendCommand(order, metadata=identity, timeout=WITHIN_S)
            (command,) = (await next_response(head_end))["commands"]
            assert (command["command_id"], command["device_id"]) == ("closer", "node-tag")
            assert command["instruction"]["report_every"]["interval_s"] == 15

            assert (await next_response(head_end))["batch"] == "2", "the receipt is answered"
            query = ingest_pb2.ListCommandsRequest(device_id="node-tag")
            async with asyncio.timeout(WITHIN_S):
                while (await desk.ListCommands(query, metadata=identity)).commands[0].state != DONE:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

            assert head_end.stdin
            head_end.stdin.close()
            async with asyncio.timeout(WITHIN_S):
                assert await head_end.wait() == 0
        stored = await client.stored()
    assert stored["good"] == stored["strap"] == 1 and not {"north-of-the-pole", "no-device"} & set(stored)


async def test_a_head_end_in_node_gets_the_reason_of_a_rejected_token(mesh: IngestMesh, program: Path) -> None:
    async with mesh.connected(), running(program, str(ROOT / "protos"), mesh.address, "rubbish", "node-tag") as process:
        refused = await next_response(process)
        assert (refused["code"], refused["details"]) == ("UNAUTHENTICATED", "the token is malformed")
        assert process.stdin
        process.stdin.close()
        async with asyncio.timeout(WITHIN_S):
            assert await process.wait() == 1
