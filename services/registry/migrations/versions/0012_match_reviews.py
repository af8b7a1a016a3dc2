"""Keep the agreements of a reviewed pair by field and level instead of sentences, the article of its order, and its comparisons."""

import json
import re

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_REASON = re.compile(r"(?P<words>.*) \((?P<weight>[+-][0-9.]+) bits\)")
_LEVELS = {
    "the national numbers are equal": ("national_id", "EQUAL"),
    "the national numbers differ by one slip of typing behind the date of birth": ("national_id", "ONE_DIGIT"),
    "the national numbers differ": ("national_id", "DIFFERENT"),
    "the names are equal": ("name", "EQUAL"),
    "the names differ by what is easily misheard or mistyped": ("name", "CLOSE"),
    "the names differ by one syllable": ("name", "NEAR"),
    "only the surnames are equal; given names may be changed": ("name", "SURNAME"),
    "the names differ": ("name", "DIFFERENT"),
    "one name can be read as the other, across Hangul and Latin spellings": ("name_latin", "ALIKE"),
    "one name can nearly be read as the other, across Hangul and Latin spellings": ("name_latin", "CLOSE"),
    "the names differ, across Hangul and Latin spellings": ("name_latin", "DIFFERENT"),
    "the dates of birth are equal": ("birth_date", "EQUAL"),
    "day and month of birth are swapped": ("birth_date", "SWAPPED"),
    "two neighbouring digits of the dates of birth are transposed": ("birth_date", "TRANSPOSED"),
    "the dates of birth are one year apart, on the same day": ("birth_date", "YEAR_APART"),
    "the dates of birth differ by one digit": ("birth_date", "ONE_DIGIT"),
    "the dates of birth are apart as a lunar date is from its solar one": ("birth_date", "LUNAR"),
    "the dates of birth differ": ("birth_date", "DIFFERENT"),
    "the sex is the same": ("sex", "EQUAL"),
    "the sex differs": ("sex", "DIFFERENT"),
    "a telephone number is the same": ("phone", "EQUAL"),
    "a telephone number differs by one slip of typing": ("phone", "ONE_DIGIT"),
    "the telephone numbers differ": ("phone", "DIFFERENT"),
    "the addresses are the same": ("address", "EQUAL"),
    "the addresses are of one street and house": ("address", "HOUSE"),
    "the addresses are of one area": ("address", "AREA"),
    "the addresses differ": ("address", "DIFFERENT"),
}


def upgrade() -> None:
    op.add_column("reviews", sa.Column("agreements", sa.Text, nullable=False, server_default="[]"))
    # Empty until the records are compared next: until then, the reader of the records names the article.
    op.add_column("reviews", sa.Column("legal_basis", sa.String(32), nullable=False, server_default=""))
    reviews = sa.table("reviews", *map(sa.column, ("case_id", "reasons", "agreements")))
    connection = op.get_bind()
    for case_id, reasons in connection.execute(sa.select(reviews.c.case_id, reviews.c.reasons)).all():
        statement = sa.update(reviews).where(reviews.c.case_id == case_id)
        connection.execute(statement.values(agreements=json.dumps(list(map(_agreement, json.loads(reasons))))))
    op.drop_column("reviews", "reasons")
    op.create_table(
        "review_comparisons",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("case_id", sa.String(64), nullable=False, index=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("order_version", sa.BigInteger, nullable=False),
        sa.Column("wearer_version", sa.BigInteger, nullable=False),
        sa.Column("weight_bits", sa.Float, nullable=False),
        sa.Column("agreements", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )


def _agreement(reason: str) -> tuple[str, str, float]:
    """Field, level and weight of a reason that was stored as a sentence."""
    stated = _REASON.fullmatch(reason)
    if stated is None:
        raise ValueError("a stored reason of a review has no weight")
    return (*_LEVELS[stated["words"]], float(stated["weight"]))
