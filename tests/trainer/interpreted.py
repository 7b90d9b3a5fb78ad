"""Whether Triton's kernels can be tried here, and where."""

from __future__ import annotations

import importlib.util
import os

import torch

TRITON = importlib.util.find_spec("triton") is not None  # PyTorch brings it on Linux
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"  # conftest.py sets it where there is no GPU
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
