"""Frozen features, probes and benchmarks."""
