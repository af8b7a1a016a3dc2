"""A small evidence bundle of a fictional incident, and crafted bundles with valid hashes and signatures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common.evidence.model import Evidence, StoredMessage
from services.court.evidence import archive
from services.court.evidence import bundle as evidence_bundle
from services.court.evidence.bundle import Ground
from services.court.evidence.leg_records import Chain
from services.dispatch.domain.events import Acknowledged
from services.dispatch.leg import chain
from services.dispatch.leg.chain import ChainHead
from tandem.common.v1 import log_pb2

INCIDENT = "incident-1"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BEGAN_MS = 1_800_000_000_000
ABOUT: Mapping[str, Any] = {
    "made_at_ms": BEGAN_MS,
    "made_by": "spiffe://tandem/reviewer/x",
    "made_for": "spiffe://npa/desk/seoul",
    "legal_basis": "STALKING_9_1_3_2",
    "software": "0.1.0",
}
GROUND = Ground(INCIDENT, 0, "log-1", 1, 0, BEGAN_MS)
Members = dict[str, bytes]
Manifest = dict[str, Any]
Craft = Callable[[Members, Manifest], None]
"""Changes the members of a bundle, or the fields of its manifest except the hashes."""


def event(id_: int, head: ChainHead, by: str) -> chain.ChainedEvent:
    """A chained event: a desk has acknowledged its assignment."""
    return chain.write(head, INCIDENT, Acknowledged(BEGAN_MS + id_, "assign-1", by))


def bundle(by: str = "spiffe://npa/desk/kim", whole: bool = True) -> bytes:
    """A bundle for the police with three empty log entries and a chain of two events. Without `whole` the log had lost earlier ones."""
    first = event(1, ChainHead(), by)
    second = event(2, ChainHead(first.id, first.hash), by)
    links = Chain("police", ChainHead(), (first, second), ChainHead(second.id, second.hash))
    tick = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()
    entries = tuple(StoredMessage("LOG_0", n, BEGAN_MS + 1_000 * n, "log.0.tick", tick) for n in (1, 2, 3))
    evidence = Evidence(INCIDENT, "police", "wearer-1", ("order-1",), (), 0, BEGAN_MS, whole, False, entries)
    return evidence_bundle.make_bundle(evidence, GROUND, [links], about=ABOUT, key=KEY)


def crafted(craft: Craft, by: str = "spiffe://npa/desk/kim") -> bytes:
    """A bundle with changed members and manifest, whose hashes and signature are valid."""
    with tarfile.open(fileobj=io.BytesIO(bundle(by))) as file:
        members = {member.name: opened.read() for member in file if (opened := file.extractfile(member))}
    manifest = json.loads(members.pop("manifest.json"))
    del members["signature.json"], manifest["members"]
    craft(members, manifest)
    overridden = {name: members.pop(name) for name in ("manifest.json", "signature.json") if name in members}
    return archive.write_tar(archive.seal_members(members, manifest, KEY) | overridden)


def with_manifest(manifest: bytes) -> Craft:
    """Replaces the manifest by these bytes and signs them."""

    def craft(members: Members, _: Manifest) -> None:
        sealed = archive._signature(
            manifest, KEY.sign(archive._SIGNED_PREFIX + manifest), KEY.public_key().public_bytes_raw()
        )
        members["manifest.json"], members["signature.json"] = manifest, sealed

    return craft


def in_line(member: str, number: int, change: Callable[[dict[str, Any]], None]) -> Craft:
    """Changes the JSON object in a line of a member. Lines count from 1."""

    def craft(members: Members, _: Manifest) -> None:
        lines = members[member].splitlines()
        fields = json.loads(lines[number - 1])
        change(fields)
        lines[number - 1] = json.dumps(fields).encode()
        members[member] = b"\n".join(lines) + b"\n"

    return craft


def as_line(member: str, line: bytes) -> Craft:
    """Replaces the first line of a member."""

    def craft(members: Members, _: Manifest) -> None:
        members[member] = b"\n".join([line, *members[member].splitlines()[1:]]) + b"\n"

    return craft
