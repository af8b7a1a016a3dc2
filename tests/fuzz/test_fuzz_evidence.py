"""Fuzz tests of evidence bundles: a bundle that was changed anywhere and signed again is proven or BROKEN, and never raises another
error.

`make fuzz` runs them for minutes.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.cli.commands import evidence
from services.common.failure import printable
from services.court.evidence import bundle as evidence_bundle
from services.court.evidence.archive import CorruptArchive
from tests.support.bundles import Manifest, Members, bundle, crafted, with_manifest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""Duration for all targets together, seconds. If 0, the default, each target gets one round of the same hundred examples."""
WHOLE = bundle()
NAMES = (
    "README.txt",
    "log.jsonl",
    "alerts.jsonl",
    "measures.jsonl",
    "dead_letters.jsonl",
    "replay.json",
    "chain-police.jsonl",
)
PIECES = st.sampled_from(
    [
        b"[",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"\n",
        b"-1",
        b"1e999",
        b"null",
        b"\x1b[2K",
        b"\xff",
        b"[" * 2_000,
        b"9" * 5_000,
        b'"a":1,',
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["format", "incident_id", "for", "chains", "log", "clock", "order_ids", "made_at_ms", "software", "\x1b[2K"]
)


def mangled(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some of them removed or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(whole)))
        whole = whole[:at] + draw(PIECES | st.binary(max_size=3)) + whole[at + draw(st.integers(0, 8)) :]
    return whole


@st.composite
def of_members(draw: st.DrawFn) -> bytes:
    """A bundle with one changed member."""

    def craft(members: Members, _: Manifest) -> None:
        name = draw(st.sampled_from(NAMES))
        members[name] = mangled(draw, members[name])

    return crafted(craft)


@st.composite
def of_manifests(draw: st.DrawFn) -> bytes:
    """A bundle whose manifest has other values or is changed as text."""

    def craft(members: Members, manifest: Manifest) -> None:
        manifest.update(draw(st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3)))

    return crafted(
        with_manifest(mangled(draw, b'{"format":1,"for":"police","members":{}}')) if draw(st.booleans()) else craft
    )


@st.composite
def of_files(draw: st.DrawFn) -> bytes:
    """A bundle whose file itself is changed."""
    return mangled(draw, WHOLE)


TARGETS: dict[str, st.SearchStrategy[bytes]] = {
    "members": of_members(),
    "manifest": of_manifests(),
    "file": of_files(),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_bundle_is_proven_or_broken(name: str) -> None:
    @settings(
        max_examples=1_000 if SECONDS else 100,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name])
    def attempt(content: Any) -> None:
        try:
            found = evidence_bundle.verify_bundle(content, None)
        except CorruptArchive as broken:
            assert str(broken).isprintable()
            return
        assert all(printable(line).isprintable() for line in evidence._lines(found, evidence._summary(found, False)))

    until_s = time.monotonic() + SECONDS / len(TARGETS)
    rounds = 0
    while not rounds or time.monotonic() < until_s:
        attempt()
        rounds += 1
    print(f"{name}: {rounds} rounds")
