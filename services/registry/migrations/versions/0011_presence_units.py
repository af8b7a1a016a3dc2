"""Create the tables of the home units and beacons of wearers, and of the beacons of protected persons."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, owner, owners in (
        ("wearer_units", "wearer_id", "wearers"),
        ("person_units", "person_id", "protected_persons"),
    ):
        op.create_table(
            table,
            sa.Column("unit_id", sa.String(64), primary_key=True),
            sa.Column("source_version", sa.BigInteger, nullable=False),
            sa.Column("digest", sa.LargeBinary, nullable=False),
            sa.Column(owner, sa.String(64), sa.ForeignKey(f"{owners}.{owner}"), nullable=False, index=True),
            sa.Column("sealed", sa.LargeBinary, nullable=False),
        )
