"""What a trace is made of, and the spans that follow from it. Pure."""
