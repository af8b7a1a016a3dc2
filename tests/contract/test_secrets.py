"""The repository holds no secrets, and the secret scan finds seeded ones."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.common.rpc.identity import sign_dev_token
from tools import secret_scan

PEM = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
HEX = secrets.token_hex(32)
# Generated at run time, so that the scan doesn't find them in this file.
SEEDS = {
    "a PEM file": PEM,
    "a key in an environment file": f"TANDEM_REGISTRY_KEY={HEX}",
    "a key in YAML": f"  registry-key: {HEX}",
    "a key in Python": f'DEV_SECRET: str = "{HEX}"',
    "a key in JSON": f'{{"dev_secret": "{HEX}"}}',
    "a development token": f'token = "{sign_dev_token("spiffe://moj/records", HEX)}"',
    "a cloud's access key": "AKIA" + "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(16)),
    "a forge's token": "ghp_" + secrets.token_hex(18),
    "a password in a URL": f"postgresql://registry:{secrets.token_hex(8)}@db/registry",
}


def test_the_repository_holds_no_secrets() -> None:
    assert secret_scan.main([]) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_secret_is_found(tmp_path: Path, seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text(f"first line\n{SEEDS[seed]}\n")
    assert secret_scan.main([str(file)]) == 1
    assert capsys.readouterr().out.startswith(f"{file}:2: ")


@pytest.mark.parametrize(
    "harmless",
    [
        "ledger_key_file: Path | None = None",
        "- secretName: tls-dispatch-probation",
        "postgresql://user:password@host/registry",
        "postgresql://registry:$password@postgres/registry",
        "token = device_tokens.make_a_new_one_for(device_id)",
        f"key = '{'00' * 32}'",
    ],
)
def test_harmless_text_passes_the_scan(harmless: str) -> None:
    assert list(secret_scan.findings(harmless)) == []
