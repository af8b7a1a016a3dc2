"""Notes of an incident: the note itself, and the decision to add it. Pure."""
