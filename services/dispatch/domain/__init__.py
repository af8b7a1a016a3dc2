"""One leg's share of an incident, pure: no clock, no I/O, no random. `decisions.decide` is the way in."""
