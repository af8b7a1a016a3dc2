"""Create the Secrets that an overlay's given.txt asks for, as docs/reference/kubernetes.md tells operators to do."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from services.common.certificates import AUTHORITY, CERT, KEY, folder_of
from services.common.privacy import secret_keys
from services.local import authority
from services.registry.ledger import open_signer
from tools.kube import identities

PHONES, PAGES = "tls-phones", "pages-"
"""Names of Secrets with a certificate for phones or browsers, not for internal callers."""
LIFETIME = timedelta(days=1)


def make(wanted: Mapping[str, set[str]], folder: Path, hosts: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Creates Secrets with random keys and certificates for these hosts. Returns the values by Secret and key.

    All certificates, also those of the demo's callers, are in `folder`/certs afterwards.
    """
    # Only browsers and phones see the certificates of `pages-...` and `tls-phones`, so any server certificate works.
    identity_by_secret = {name: identities.identity_of(name.removeprefix(identities.PREFIX)) for name in wanted}
    identity_by_secret |= {
        name: identities.identity_of("ingest") for name in wanted if name == PHONES or name.startswith(PAGES)
    }
    ids = {*authority.SERVERS, *authority.CLIENTS, *filter(None, identity_by_secret.values())}
    authority.issue(folder / "certs", sorted(ids), (*authority.LOOPBACK, *hosts), lifetime=LIFETIME)
    open_signer(folder / "ledger.key")
    secret_keys.open_private_keys(folder / "warning.key")
    files = {name: (folder / name).read_text() for name in ("ledger.key", "ledger.pub", "warning.key", "warning.pub")}
    password = secrets.token_hex(16)
    values = {
        **files,
        "registry-key": secrets.token_hex(32),
        "session.key": secrets.token_hex(32),
        "state.key": secrets.token_hex(32),
        "password": password,
        "url": f"postgresql://registry:{password}@postgres/registry",
    }
    made: dict[str, dict[str, str]] = {}
    for name, keys in wanted.items():
        if CERT in keys:
            own = folder_of(folder / "certs", identity_by_secret[name])
            values |= {key: (own / key).read_text() for key in (CERT, KEY, AUTHORITY)}
        made[name] = {key: values[key] for key in keys}
    return made
