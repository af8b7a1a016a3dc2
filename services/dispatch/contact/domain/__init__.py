"""First contact with the wearer, without I/O: its state, and the decisions on it."""
