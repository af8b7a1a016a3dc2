"""Crafted and signed evidence bundles are refused in one line that names member and fault and contains no escape sequence."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.__main__ import main
from services.common.evidence.model import StoredMessage, of_line
from services.court.evidence import bundle as evidence_bundle
from services.court.evidence.archive import canonical_json
from services.court.evidence.bundle import replay
from tandem.common.v1 import alert_pb2
from tests.support.bundles import (
    ABOUT,
    BEGAN_MS,
    GROUND,
    Craft,
    Manifest,
    Members,
    as_line,
    bundle,
    crafted,
    in_line,
    with_manifest,
)

CHAIN = "chain-police.jsonl"
DEEP = b"[" * 100_000
ESCAPE = "\x1b[1A\x1b[2Ksignature   good, by the keeper"
Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Runs the command on a file's content: exit code, standard output, standard error."""

    def run(content: bytes, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "bundle.tar"
        path.write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["tandem", "evidence", "verify", str(path), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def other_tar(*names: str) -> bytes:
    """A tar file with empty members that another program wrote."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return written.getvalue()


def put(name: str, content: bytes) -> Craft:
    def craft(members: Members, _: Manifest) -> None:
        members[name] = content

    return craft


def drop(name: str) -> Craft:
    def craft(members: Members, _: Manifest) -> None:
        del members[name]

    return craft


def claim(**fields: Any) -> Craft:
    return lambda _, manifest: manifest.update(fields)


def unclaim(name: str) -> Craft:
    def craft(_: Members, manifest: Manifest) -> None:
        del manifest[name]

    return craft


def assign(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(fields)


def lack(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del content[name]

    return change


def reversed_log(members: Members, _: Manifest) -> None:
    members["log.jsonl"] = b"".join(reversed(members["log.jsonl"].splitlines(keepends=True)))


CRAFTED: dict[str, tuple[Craft, str]] = {
    # members
    "a path": (put("../../etc/x", b"x"), "the header behind the beginning: names a member that no bundle has: '../../etc/x'"),
    "an absolute path": (put("/etc/x", b"x"), "the header behind the beginning: names a member that no bundle has"),
    "an unknown name": (put("zz.jsonl", b""), "names a member that no bundle has: 'zz.jsonl'"),
    "a name with an escape": (put("zz\x1b[2K", b""), "names a member that no bundle has: 'zz\\x1b[2K'"),
    "another leg's chain": (put("chain-warning.jsonl", b""), "chain-warning.jsonl: doesn't belong in this bundle"),
    **{
        f"no {name}": (drop(name), f"{name}: is missing")
        for name in ("README.txt", "log.jsonl", "alerts.jsonl", "measures.jsonl", "dead_letters.jsonl", "replay.json", CHAIN)
    },
    # signature
    "a deep signature": (put("signature.json", DEEP), "signature.json: is nested deeper than 16"),
    "a signature of nothing": (put("signature.json", b"{}\n"), "signature.json: algorithm: is missing"),
    "a signature that is a list": (put("signature.json", b"[]\n"), "signature.json: must be an object"),
    "a short key": (
        put("signature.json", b'{"algorithm":"x","manifest":{"bytes":0,"chunks":[],"sha256":"' + b"0" * 64 + b'"},"public_key":"00"}'),
        "signature.json: public_key: must be 64 hex digits",
    ),
    # manifest
    "a deep manifest": (with_manifest(DEEP), "manifest.json: is nested deeper than 16"),
    "a manifest of depth 17": (with_manifest(b"[" * 17 + b"]" * 17), "manifest.json: is nested deeper than 16"),
    "an empty manifest": (with_manifest(b""), "manifest.json: isn't JSON"),
    "a manifest that isn't UTF-8": (with_manifest(b"\xff"), "manifest.json: isn't UTF-8"),
    "a manifest that is a number": (with_manifest(b"1"), "manifest.json: must be an object"),
    "a name twice": (with_manifest(b'{"for":"police","for":"police"}'), "manifest.json: for: is there twice"),
    "not a number": (with_manifest(b'{"format":NaN}'), "manifest.json: NaN isn't a JSON number"),
    "a long number": (with_manifest(b'{"format":' + b"9" * 10_000 + b"}"), "manifest.json: isn't JSON"),
    "another format": (claim(format=2), "manifest.json: format: must be a whole number from 1 to 1"),
    "an unknown field": (claim(**{"a\x1b[2K": 1}), "manifest.json: a\\x1b[2K: is an unknown field"),
    "for nobody": (claim(**{"for": "press"}), "manifest.json: for: must be one of probation, police"),
    "a software with an escape": (claim(software=ESCAPE), "manifest.json: software: must be at most 512 printable ASCII"),
    "an incident with an escape": (claim(incident_id=ESCAPE), "manifest.json: incident_id: must be 1 to 160 characters"),
    "a moment beyond time": (claim(made_at_ms=10**18), "manifest.json: made_at_ms: must be a whole number"),
    "a bool for a number": (claim(fold_version=True), "manifest.json: fold_version: must be a whole number"),
    "a partition below 0": (
        claim(log={"log_id": "l", "partition": -1, "window_stamp_ms": 0}),
        "manifest.json: log: partition: must be a whole number from 0 to 63",
    ),
    "a clock of rate 0": (
        claim(clock={"rate": 0, "anchor_ms": 0, "stamp_after_receipt_ms": []}),
        "manifest.json: clock: rate: must be a whole number from 1",
    ),
    "chains that lack nobody": (claim(chains_missing=[]), "manifest.json: chains_missing: must name the legs"),
    "chains of nobody": (claim(chains={}), "doesn't belong in this bundle"),
    "another head": (claim(chains={"police": {"head": [2, "0" * 64]}}), f"{CHAIN}: line 1: head: isn't the manifest's"),
    **{
        f"no {name}": (unclaim(name), f"manifest.json: {name}: is missing")
        for name in (
            *("format", "incident_id", "for", "wearer_id", "order_ids", "ended", "whole", "chains", "chains_missing"),
            *("fold_version", "log", "clock", *ABOUT),
        )
    },
    # chains
    "an empty chain": (put(CHAIN, b""), f"{CHAIN}: is empty"),
    "a deep chain": (as_line(CHAIN, DEEP), f"{CHAIN}: line 1: is nested deeper than 16"),
    "a chain without an end of line": (put(CHAIN, b"{}"), f"{CHAIN}: its last line has no line feed"),
    "a chain of another leg": (in_line(CHAIN, 1, assign(leg="warning")), f"{CHAIN}: line 1: leg: is warning"),
    "a head of three": (in_line(CHAIN, 1, assign(head=[1, "", 3])), f"{CHAIN}: line 1: head: must be a list of 2"),
    "no hash": (in_line(CHAIN, 2, lack("hash")), f"{CHAIN}: line 2: hash: is missing"),
    "an id that is a text": (in_line(CHAIN, 2, assign(id="1")), f"{CHAIN}: line 2: id: must be a whole number"),
    "a body without its kind": (in_line(CHAIN, 2, lack("kind")), f"{CHAIN}: line 2: incident_id, kind and body go together"),
    "a kind with an escape": (in_line(CHAIN, 2, assign(kind=ESCAPE)), f"{CHAIN}: line 2: kind: must be the name"),
    "a deep body": (in_line(CHAIN, 2, assign(body="[" * 100_000)), f"{CHAIN}: line 2: is nested deeper than 16"),
    "a body without its moment": (in_line(CHAIN, 2, assign(body="{}")), f"{CHAIN}: line 2: at_ms: is missing"),
    "a body of another type": (in_line(CHAIN, 2, assign(body='{"at_ms":0,"by":[]}')), f"{CHAIN}: line 2: by: must be a text"),
    "another incident's event": (in_line(CHAIN, 2, assign(incident_id="incident-2")), f"{CHAIN}: event 1 isn't the one"),
    # records
    "a deep record": (as_line("log.jsonl", DEEP), "log.jsonl: line 1: is nested deeper than 16"),
    "a record of nothing": (as_line("log.jsonl", b"{}"), "log.jsonl: line 1: stream: is missing"),
    "a sequence that is a text": (in_line("log.jsonl", 2, assign(sequence="2")), "log.jsonl: line 2: sequence: must be a whole"),
    "another stream": (in_line("log.jsonl", 1, assign(stream="ALERTS")), "log.jsonl: line 1: stream: must be LOG_0"),
    "no base64": (in_line("log.jsonl", 1, assign(data="A")), "log.jsonl: line 1: data: isn't base64"),
    "another hash": (in_line("log.jsonl", 1, assign(sha256="0" * 64)), "log.jsonl: line 1: sha256: isn't the hash of its data"),
    "records in reverse order": (reversed_log, "log.jsonl: line 2: sequence: must be greater"),
    "a record twice": (in_line("log.jsonl", 3, assign(sequence=2)), "log.jsonl: line 3: sequence: must be greater"),
    "no alert": (
        put("alerts.jsonl", b'{"stream":"ALERTS","sequence":1,"stamp_ms":0,"subject":"alert.a","data":"/w==","cut":true,'
            b'"premise":false,"sha256":""}\n'),
        "alerts.jsonl: line 1: data: isn't a valid Alert",
    ),
    "another replay": (put("replay.json", b"{}\n"), "replay.json: isn't what the fold gives"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_bundle_is_refused_in_one_line(verify: Verify, name: str) -> None:
    craft, wanted = CRAFTED[name]
    code, out, err = verify(crafted(craft))
    assert (code, out) == (1, ""), err
    assert err.startswith("BROKEN ") and wanted in err
    assert err.count("\n") == 1 and err.rstrip("\n").isprintable()


NO_BUNDLES = {
    "a text": b"# Tandem\n" * 100,
    "nothing": b"",
    "zeros": bytes(4096),
    "a tar file of something else": other_tar("README.txt", "manifest.json"),
}


@pytest.mark.parametrize("name", NO_BUNDLES)
def test_a_file_that_never_was_a_bundle_is_said_to_be_none(verify: Verify, name: str, tmp_path: Path) -> None:
    code, out, err = verify(NO_BUNDLES[name])
    what = "is no evidence bundle: a bundle is the .tar file that `tandem evidence` writes"
    assert (code, out, err) == (2, "", f"{tmp_path / 'bundle.tar'}: {what}\n")


@pytest.mark.parametrize(
    "alter", [lambda whole: b"x" + whole[1:], lambda whole: whole[:700], lambda whole: b"\n" + whole]
)
def test_a_bundle_whose_beginning_or_end_is_altered_is_broken(verify: Verify, alter: Callable[[bytes], bytes]) -> None:
    code, out, err = verify(alter(bundle()))
    assert (code, out) == (1, "") and err.startswith("BROKEN ")


def test_a_sound_bundle_is_verified(verify: Verify) -> None:
    code, out, err = verify(bundle())
    assert (code, err) == (0, "") and "0 alerts from 3 entries are the same again" in out


@pytest.mark.parametrize("by", [ESCAPE, "\r signature", "\u202egnp", "\x9b2J", "\n" + "signature   good"])
def test_a_name_in_a_chain_cannot_act_on_the_terminal(verify: Verify, by: str) -> None:
    code, out, _ = verify(crafted(lambda *_: None, by))
    assert code == 0
    lines = out.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("signature") for line in lines) == 1
    assert sum("Acknowledged" in line for line in lines) == 2


def test_an_alert_that_the_fold_does_not_give_is_named_in_printable_text(verify: Verify) -> None:
    alert = alert_pb2.Alert(alert_id=ESCAPE, sequence=1, incident_id="incident-1").SerializeToString()
    record = StoredMessage("ALERTS", 1, BEGAN_MS, "alert.a", alert)

    def craft(members: Members, _: Manifest) -> None:
        members["alerts.jsonl"] = record.to_line()
        records = [of_line(line) for name in ("log.jsonl", "alerts.jsonl") for line in members[name].splitlines()]
        members["replay.json"] = canonical_json(replay(GROUND, records).to_json())

    code, out, err = verify(crafted(craft))
    assert code == 1 and "DIFFERENT" in out and err == ""
    assert all(line.isprintable() for line in out.removesuffix("\n").split("\n"))


def test_entries_that_crash_the_fold_are_a_fault_without_traceback(
    verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a defect")

    sound = bundle()
    monkeypatch.setattr(evidence_bundle, "replay", fail)
    assert verify(sound) == (1, "", "BROKEN log.jsonl: can't be folded: AssertionError\n")


def test_a_file_that_is_too_large_or_unreadable_is_refused(
    verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence_bundle, "MAX_BUNDLE_BYTES", 1_000)
    assert verify(bundle()) == (1, "", "BROKEN the file: has more than 1000 bytes\n")
    monkeypatch.setattr(sys, "argv", ["tandem", "evidence", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and capsys.readouterr().err == f"{tmp_path}: is a folder; name a file\n"
