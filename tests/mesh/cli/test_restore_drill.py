"""Restore drill: a backup of PostgreSQL and SQLite databases, keys and the log is restored elsewhere and verified there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from services.client.mesh import MeshConnection
from services.common.messaging import flow, pull
from tandem.common.v1 import ledger_pb2
from tests.support.common.mesh import running_mesh, tandem
from tests.support.common.postgres import PostgresServer
from tests.support.geofence.evaluator_mesh import offline, stored_alerts

KEPT = ("data", "nats/store", "dev_secret", "state.key")
"""Parts of a mesh's folder that belong to its backup."""
PLAYED_S = 100.0
FAST = ("--clock-rate", "60")
OTHER_LEG_WITHIN_S = 3600
"""A minute of wall time on the fast clock. The default of 10 s is 0.17 s there, and a leg on a busy machine may need longer."""


def settings(urls: dict[str, str]) -> dict[str, str]:
    return {
        "TANDEM_REGISTRY_DATABASE_URL": urls["registry"],
        "TANDEM_POLICE_DATABASE_URL": urls["police"],
        "TANDEM_OTHER_LEG_WITHIN_S": str(OTHER_LEG_WITHIN_S),
    }


def play(folder: Path) -> None:
    outcome = tandem("demo", "--dir", str(folder), "--json", timeout_s=PLAYED_S)
    assert outcome.returncode == 0, outcome.stderr


def incidents(folder: Path) -> list[dict[str, object]]:
    outcome = tandem("incidents", "--dir", str(folder), "--json")
    assert outcome.returncode == 0, outcome.stderr
    listed: list[dict[str, object]] = json.loads(outcome.stdout)["incidents"]
    return sorted(listed, key=lambda incident: str(incident["incident_id"]))


async def alerts(mesh: MeshConnection) -> tuple[list[bytes], list[bytes]]:
    """The stored alerts in order of their decision, and the alerts of an offline fold over the stored log."""
    async with mesh.nats.bus_as("explain") as bus:
        last = (await bus.bounds_of(flow.log_stream(0))).last
        folded, _ = await offline(bus, last)
        # Two evaluators publish the alerts of one entry concurrently, so their order in the stream may differ from the decision's.
        return await stored_alerts(bus, len(folded), last), folded


async def heads(mesh: MeshConnection) -> list[str]:
    """The ledger's signed heads as an agency saves them, once there are any."""
    async with mesh.nats.bus_as("operator") as bus:
        async for messages in pull.read(bus, flow.LEDGER.name, 1):
            return [line(ledger_pb2.LedgerHead.FromString(message.data)) for message in messages]
    raise AssertionError("the stream ended")


def line(head: ledger_pb2.LedgerHead) -> str:
    fields = {
        "sequence": head.sequence,
        "hash": head.hash.hex(),
        "at_ms": head.at_ms,
        "signature": head.signature.hex(),
    }
    return json.dumps(fields)


@pytest.mark.drill
def test_a_backup_restored_elsewhere_is_verified(tmp_path: Path, postgres: PostgresServer) -> None:
    old = tmp_path / "old"
    new = tmp_path / "new"
    kept = tmp_path / "kept"
    there = {"registry": postgres.new_database(), **postgres.new_schemas("police")}
    with running_mesh(old, *FAST, settings=settings(there)) as mesh:
        play(old)
        before = incidents(old)
        # The agencies' own copies of key and heads aren't in the backup.
        kept.mkdir()
        shutil.copy(old / "data" / "registry" / "ledger.pub", kept)
        signed = asyncio.run(heads(mesh.now))
        (kept / "heads").write_text("\n".join(signed))
    here = {name: postgres.copied(url) for name, url in there.items()}
    for name in KEPT:
        source, target = old / name, new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _ = shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.rmtree(old)
    for url in there.values():
        postgres.drop(url)

    with running_mesh(new, *FAST, settings=settings(here)) as mesh:
        stored, folded = asyncio.run(alerts(mesh.now))
        assert stored == folded and stored, "I2"
        proof = ("--public-key", str(kept / "ledger.pub"), "--heads", str(kept / "heads"))
        verified = tandem("ledger", "verify", "--database", here["registry"], *proof)
        assert verified.returncode == 0, verified
        proven = re.search(r"heads proven: (\d+)", verified.stdout)
        assert proven and int(proven[1]) >= len(signed)
        after = incidents(new)
        known = {incident["incident_id"] for incident in before}
        assert [incident for incident in after if incident["incident_id"] in known] == before and before
        # On the fast clock the demo's wearer falls silent within seconds. Incidents of that silence are newer than the backup.
        newest = max(str(incident["opened_at"]) for incident in before)
        assert all(str(incident["opened_at"]) > newest for incident in after if incident["incident_id"] not in known), (
            after
        )
        play(new)
        assert {str(incident["incident_id"]) for incident in incidents(new)} > {
            str(incident["incident_id"]) for incident in before
        }
    for log in (new / "logs").iterdir():
        records = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert not [record for record in records if record.get("level") == "critical"], log.name
