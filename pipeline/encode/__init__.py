"""Captions to unit vectors, and those to codes."""
