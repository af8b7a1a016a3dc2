"""First contact with the wearer: its state, and the decisions on it. Pure."""
