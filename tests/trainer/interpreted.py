"""Whether Triton's kernels can be tried here, and where: on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import torch

TRITON = importlib.util.find_spec("triton") is not None  # PyTorch brings it on Linux
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"  # conftest.py sets it where there is no GPU
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


if INTERPRETED:
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from trainer import fused

    # The interpreter keeps bfloat16 as whole numbers of 16 bits, and multiplies those.
    multiply = InterpreterBuilder.create_dot

    def _as_float32(x: Any) -> Any:
        if x.dtype.scalar != language.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), language.float32)

    InterpreterBuilder.create_dot = lambda self, a, b, *rest: multiply(self, _as_float32(a), _as_float32(b), *rest)
    fused._has_kernels = lambda rows: True
