"""Times of equipment events."""
