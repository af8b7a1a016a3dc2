"""The decision, pure: no clock, no I/O, no random. `fold.step` is the way in."""
