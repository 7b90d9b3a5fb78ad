"""What is evaluated: frozen networks, ours and others'."""
