"""Version of the fold."""

VERSION = 10
"""It grows with every change that could alter a decision; the log tells older processes to stop."""
