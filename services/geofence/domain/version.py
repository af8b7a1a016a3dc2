"""Version of the fold."""

VERSION = 19
"""Version of the fold. Each change that could alter a decision increments it; the log tells older processes to stop."""
