"""Version of the fold."""

VERSION = 11
"""It grows with every change that could alter a decision; the log tells older processes to stop."""
