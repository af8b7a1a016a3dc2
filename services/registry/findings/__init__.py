"""Findings of reviewers about incidents: who has to act, by when, and what came of it."""
