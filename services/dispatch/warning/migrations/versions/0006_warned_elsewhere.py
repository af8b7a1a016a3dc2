"""Finds the incidents in which a person's warnings still apply."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_index("told_open", "told", ["person_id"], sqlite_where=sa.text("json_extract(state, '$.open')"))
