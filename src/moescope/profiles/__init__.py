"""Profiles: what an expert makes of its input, and which experts do the same."""
