"""One thread for each process of tests: pytest's workers have a core each, and threads that share one wait in turns."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch and NumPy are imported
