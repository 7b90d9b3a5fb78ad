"""The embedded data set, drawn."""
