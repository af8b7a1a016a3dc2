"""Seal of a bundle: a signed manifest with the hashes of all members. A changed bit is located to the kibibyte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.cli.evidence.format import MANIFEST, MANIFEST_SHAPE, SIGNATURE, SIGNATURE_SHAPE, parsed
from services.cli.evidence.tar import CorruptArchive
from services.common.privacy.key_files import open_keys

CHUNK = 1024
_SIGNED_PREFIX = b"tandem evidence manifest\n"


def canonical(content: Any) -> bytes:
    """Canonical JSON with sorted keys and a final line feed: equal contents give equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def open_key(path: Path) -> Ed25519PrivateKey:
    """Opens the signing key, and creates it if absent, readable by its owner only. Writes the public key to `<name>.pub`."""
    key = Ed25519PrivateKey.from_private_bytes(open_keys(path)[0])
    path.with_suffix(".pub").write_text(key.public_key().public_bytes_raw().hex())
    return key


def seal(members: Mapping[str, bytes], about: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, bytes]:
    """Adds manifest and signature to the members; `about` goes into the manifest."""
    manifest = canonical({**about, "members": {name: _hashes(content) for name, content in members.items()}})
    public_key = key.public_key().public_bytes_raw()
    return {
        **members,
        MANIFEST: manifest,
        SIGNATURE: _signature(manifest, key.sign(_SIGNED_PREFIX + manifest), public_key),
    }


def unseal(members: Mapping[str, bytes], public_key: bytes | None) -> tuple[dict[str, Any], bytes]:
    """Verifies sealed members. Returns the manifest and the public key of the signature.

    Raises CorruptArchive at the first change, or if manifest or signature have a form that `seal` doesn't write. Without `public_key`,
    the key in the bundle is used: this proves that the bundle is intact, not who made it.
    """
    for name in (MANIFEST, SIGNATURE):
        if name not in members:
            raise CorruptArchive(name, None, "is missing")
    manifest = members[MANIFEST]
    stated = parsed(SIGNATURE, members[SIGNATURE], SIGNATURE_SHAPE)
    signature, signed_by = bytes.fromhex(stated["signature"]), public_key or bytes.fromhex(stated["public_key"])
    try:
        Ed25519PublicKey.from_public_bytes(signed_by).verify(signature, _SIGNED_PREFIX + manifest)
    except (InvalidSignature, ValueError):
        _compare(MANIFEST, manifest, stated["manifest"])
        raise CorruptArchive(SIGNATURE, None, "the signature isn't that of the key over the manifest") from None
    _require_same(SIGNATURE, members[SIGNATURE], _signature(manifest, signature, signed_by))
    content: dict[str, Any] = parsed(MANIFEST, manifest, MANIFEST_SHAPE)
    wanted: dict[str, Any] = content["members"]
    for name in sorted(wanted.keys() | members.keys() - {MANIFEST, SIGNATURE}):
        if name not in members:
            raise CorruptArchive(name, None, "is missing")
        if name not in wanted:
            raise CorruptArchive(name, None, "isn't in the manifest")
        _compare(name, members[name], wanted[name])
        if _hashes(members[name]) != wanted[name]:
            raise CorruptArchive(MANIFEST, None, f"members: {name}: size or hashes don't match the member")
    return content, signed_by


def _signature(manifest: bytes, signature: bytes, public_key: bytes) -> bytes:
    fields = {"manifest": _hashes(manifest), "public_key": public_key.hex(), "signature": signature.hex()}
    return canonical({"algorithm": "Ed25519 over 'tandem evidence manifest', a line feed, and manifest.json", **fields})


def _hashes(content: bytes) -> dict[str, Any]:
    parts = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    return {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "chunks": [hashlib.sha256(part).hexdigest() for part in parts],
    }


def _compare(name: str, content: bytes, wanted: Mapping[str, Any]) -> None:
    """Raises CorruptArchive at the first kibibyte whose hash differs from the signed one."""
    actual = _hashes(content)
    if actual == wanted:
        return
    chunks = wanted.get("chunks")
    if actual["sha256"] == wanted.get("sha256") or not isinstance(chunks, list):
        return  # the stated hashes are wrong, not the member; the caller reports that
    pairs = zip(actual["chunks"], chunks, strict=False)
    first = next((i for i, (is_, was) in enumerate(pairs) if is_ != was), min(len(actual["chunks"]), len(chunks)))
    raise CorruptArchive(name, first * CHUNK, f"differs within the {CHUNK} bytes from there")


def _require_same(name: str, content: bytes, wanted: bytes) -> None:
    if content == wanted:
        return
    at = next((i for i, (is_, was) in enumerate(zip(content, wanted, strict=False)) if is_ != was), len(wanted))
    raise CorruptArchive(name, at, "was altered")
