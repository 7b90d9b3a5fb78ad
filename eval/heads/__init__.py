"""What is trained on, or asked of, frozen features: linear probes and kNN."""
