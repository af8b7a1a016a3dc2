"""Notes of an incident, without I/O: what a note is, and the decision to add it."""
