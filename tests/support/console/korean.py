"""Latin words that the Korean console may show: units, keys of the keyboard, and names of things that have no Korean one.

An id is no word: it holds a digit, or stands in `code`. What is marked as English (`lang`) is there for people who read that.
"""

LATIN_ALLOWED = frozenset(
    {"s", "ms", "m", "km"} | {"a", "c", "f", "j", "k", "n", "r", "u", "w", "Enter"} | {"CCTV", "CSV", "GPS"}
)
