"""Decisions of the service that faces phones. Pure."""
