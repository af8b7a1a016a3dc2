"""Decisions of the pages, as pure functions."""
