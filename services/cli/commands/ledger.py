"""`tandem ledger`: prove the ledger of disclosures from its database alone, without any service."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.cli import usage
from services.common.errors import FailedPrecondition
from services.common.failure import FAILED, MISUSED, CommandFailed, trouble
from services.common.storage import postgres, sqlite
from services.registry.domain.ledger import BrokenChain, LedgerHead
from services.registry.ledger import LedgerRepository, Proof, SignedHead
from services.registry.ledger import verify as prove

app = usage.group("Prove the ledger of disclosures.")


@app.callback()
def ledger() -> None:
    """The ledger of disclosures."""


@app.command(cls=usage.Command)
def verify(
    database: Annotated[str, typer.Option(help="The registry's SQLite file, or its postgresql:// URL.")],
    public_key: Annotated[
        Path | None,
        typer.Option(help="The ledger's public key (ledger.pub), from a place where only its custodian writes."),
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(help="Signed heads that an agency saved: NDJSON with sequence, hash, at_ms, signature (hex)."),
    ] = None,
) -> None:
    """Prove that no row of the ledger was changed, added or removed, or name the first such row."""
    if heads is not None and public_key is None:
        raise CommandFailed("--heads needs --public-key: without the key, anybody could have signed the heads", MISUSED)
    key = _read_key(public_key) if public_key else None
    saved = _read_heads(heads) if heads else []
    try:
        proof = asyncio.run(_verify(_engine(database), key, saved))
    except BrokenChain as broken:
        raise CommandFailed(f"the ledger is broken at {broken}", FAILED) from None
    except (DBAPIError, OSError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise CommandFailed(f"the database can't be read: {reason}", FAILED) from None
    print(f"rows proven: {proof.rows}")
    if key is None:
        print(
            "signatures: not checked without --public-key; a chain that was rewritten as a whole would not be detected"
        )
    else:
        print(f"heads proven: {proof.heads}; rows after the last one: {proof.unsigned}")


async def _verify(engine: AsyncEngine, key: bytes | None, saved: list[SignedHead]) -> Proof:
    try:
        async with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                # All pages must come from one snapshot, however long the proof takes.
                await connection.execute(sa.text("set transaction isolation level repeatable read, read only"))
            return await prove(LedgerRepository(connection), key, saved)
    finally:
        await engine.dispose()


def _engine(database: str) -> AsyncEngine:
    if "://" in database:
        try:
            return postgres.engine(database, answer_within_s=None)  # checking a page's signatures may take long
        except FailedPrecondition as error:
            raise CommandFailed(f"--database: {error.reason}", MISUSED) from None
    path = Path(database).absolute()
    if not path.is_file():
        raise CommandFailed(f"--database: there is no file {database}", MISUSED)
    return create_async_engine(
        f"sqlite+aiosqlite:///file:{path}?mode=ro&uri=true",
        hide_parameters=True,
        connect_args={"async_creator_fn": sqlite.connect},
    )


def _read_key(path: Path) -> bytes:
    key = b""
    with suppress(OSError, ValueError):
        key = bytes.fromhex(path.read_text().strip())
    if len(key) != 32:
        raise CommandFailed(f"--public-key: {path} doesn't hold a key of 64 hex digits", MISUSED)
    return key


def _read_heads(path: Path) -> list[SignedHead]:
    heads = []
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                head = LedgerHead(int(row["sequence"]), bytes.fromhex(row["hash"]), int(row["at_ms"]))
                heads.append(SignedHead(head, bytes.fromhex(row["signature"])))
            except (ValueError, KeyError, TypeError):
                raise CommandFailed(
                    f"--heads: line {number} isn't a head: a JSON object with sequence, hash, at_ms and signature",
                    MISUSED,
                ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"--heads: {path}: {trouble(error)}", MISUSED) from None
    return heads
