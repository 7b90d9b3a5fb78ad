"""Graphs: each kind's lists, backgrounds and codes, audited, and written beside the shards."""
