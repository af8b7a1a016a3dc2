"""Facts about incidents, and the spans that are built from them. Pure."""
