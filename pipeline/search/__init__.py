"""Nearest texts: exact, in tiles, by descent, on a GPU; which of them is decided by measuring."""
