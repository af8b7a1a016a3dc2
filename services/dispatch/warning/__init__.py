"""How protected persons are warned: what they are told, over which ways, and what is known of its having arrived."""
