"""Every expert of some layers taken away on its own, and the scores that claim to foretell it."""
