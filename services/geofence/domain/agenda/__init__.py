"""Moments at which time alone may decide something."""
