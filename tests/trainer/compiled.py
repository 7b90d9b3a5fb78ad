"""What Triton makes of the loss's kernels for cards that are not here.

`compiled` asks it in a process of its own: in that of the tests kernels may be for the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

CARDS = ((80, 163), (86, 99), (90, 227))
"""Compute capability, and KB of shared memory that a block may have."""


def compiled(script: str) -> list[dict[str, Any]]:
    """What a script prints as JSON, in its last line."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for made in found:
        assert 16 << 10 < made["shared"] <= made["memory"] << 10
        assert made["size"] > 1000
        assert made["hopper"] == (made["capability"] == 90)
    return found


def make(
    kernel: Any,
    card: tuple[int, int],
    tiles_for: Callable[[int, int], Any],
    parts: int,
    values: Mapping[str, object],
    kind_of: Callable[[str], str],
) -> dict[str, Any]:
    """Of one kernel, in that process. values: of its constants, beside the tiles'; kind_of: the types of the others."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability, memory = card
    tiles = tiles_for(memory << 10, parts)
    options = {**tiles.options(128, parts), **values}
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    names = kernel.arg_names
    kinds = {name: "constexpr" if name in options else kind_of(name) for name in names}
    source = ASTSource(
        kernel,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in options.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in names if kinds[n].startswith("*")},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    ptx = made.asm["ptx"]
    return {
        "capability": capability,
        "memory": memory,
        "shared": made.metadata.shared,
        "size": len(made.asm["cubin"]),
        "hopper": "wgmma.mma_async" in ptx,
        "whole_numbers": "s8.s8" in ptx,
        **values,
    }
