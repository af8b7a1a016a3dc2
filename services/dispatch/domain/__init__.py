"""Pure domain of one leg's share of an incident: no clock, no I/O, no randomness. The entry point is `decisions.decide`."""
