"""Start of a service: its settings, and what keeps it from running."""
