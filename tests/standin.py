"""A stand-in for a GPU, for machines without one: tensors that say they are on `cuda:0` and are kept on the CPU.

What it shows: an operation that is given tensors of both devices fails as it would on a GPU, and so does numpy() of a
tensor there; results are those of the CPU; and `waits` lists where the CPU waits for the device, which it must while
work is queued only where a size or a value is needed. What it cannot show: kernels, work in streams, memory, speed.

A tensor of it is a wrapper (PyTorch's mechanism for tensor subclasses) around the CPU tensor. PyTorch itself takes the
wrapper for one of the CPU, so that autograd asks no driver for streams; only Python sees `cuda:0`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from trainer.data import _constants

__all__ = ["GPU", "StandIn", "Stream", "WrongDevice", "stand_in_gpu"]

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).parent.parent
MIXING = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_")  # may be given both devices
SIZED = ("aten::nonzero", "aten::_unique2", "aten::unique_consecutive", "aten::repeat_interleave")  # by the values


class WrongDevice(RuntimeError):
    """What PyTorch would refuse on a GPU."""


class StandIn(torch.Tensor):
    """A tensor `on the GPU`; `kept` is where its values are."""

    kept: torch.Tensor

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> StandIn:
        wrapper: StandIn = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, kept.size(), strides=kept.stride(), storage_offset=kept.storage_offset(), dtype=kept.dtype
        )
        wrapper.kept = kept
        return wrapper

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        stream.used.append(self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if func is torch.Tensor.numpy:
            raise WrongDevice("numpy() of a tensor on the GPU")
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and _is("cpu", [*args[1:], *kwargs.values()])):
            _note("copy")
            return args[0].detach().kept.clone()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Stream:
    """What is asked of streams; no work is queued on them."""

    now: ClassVar[Stream]

    def __init__(self, device: torch.device) -> None:
        self.waited_for: list[Stream] = []
        self.used: list[torch.Tensor] = []
        """Tensors of other streams, whose memory must outlive what is queued here."""

    @classmethod
    def current(cls, device: torch.device) -> Stream:
        return cls.now

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)

    @contextmanager
    def entered(self) -> Iterator[None]:
        before, Stream.now = Stream.now, self
        yield
        Stream.now = before


Stream.now = Stream(GPU)
_waits: list[str] = []


@contextmanager
def stand_in_gpu() -> Iterator[list[str]]:
    """`cuda:0` exists in here. Yields a list that grows by `why FILE:LINE` for every time that the CPU waits."""
    real = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        return real(data, **options) if device is None else real(data, **options).to(device)

    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # or Module.to would keep the CPU's parameters
    _waits.clear()
    _constants.cache_clear()  # of tensors on a real `cuda:0`, or of those that are none
    try:
        with (
            mock.patch.object(torch.cuda, "_lazy_init"),
            mock.patch.object(torch.cuda, "mem_get_info", return_value=(1 << 33, 1 << 33)),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
            mock.patch.object(torch, "tensor", tensor),
            mock.patch.object(torch.Tensor, "pin_memory", lambda self: self),  # needs a driver
            mock.patch.object(torch.cuda, "Stream", Stream),
            mock.patch.object(torch.cuda, "stream", Stream.entered),
            mock.patch.object(torch.cuda, "current_stream", Stream.current),
            mock.patch.object(Stream, "now", Stream(GPU)),
            _Factories(),
        ):
            yield _waits
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        _constants.cache_clear()


class _Factories(TorchDispatchMode):
    """torch.empty(device="cuda") and its kin, which are given no tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = any(isinstance(x, StandIn) for x in tree_leaves((args, kwargs)))
        return _run(func, args, kwargs) if ours or _is("cuda", [kwargs.get("device")]) else func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, StandIn)]
    foreign = [tuple(x.shape) for x in tensors if not isinstance(x, StandIn) and x.dim()]
    if ours and foreign and name not in MIXING:
        raise WrongDevice(f"{name} of tensors on the GPU and of {foreign} on the CPU")
    _note_wait(name, args, kwargs, bool(ours))
    plain, options = tree_map(lambda x: x.kept if isinstance(x, StandIn) else x, (args, kwargs))
    if options.get("device") is not None:
        options["device"] = torch.device("cpu")
    out = func(*plain, **options)
    if name == "aten::copy_" and not isinstance(args[0], StandIn):
        return args[0]
    known = {id(x.kept): x for x in ours}  # what works in place gives back what it was given

    def wrapped(x: Any) -> Any:
        return (known.get(id(x)) if id(x) in known else StandIn(x)) if isinstance(x, torch.Tensor) else x

    return tree_map(wrapped, out)


def _note_wait(name: str, args: Any, kwargs: Any, ours: bool) -> None:
    if name == "aten::_local_scalar_dense" and ours:
        _note("value")
    elif name in SIZED and ours:
        _note("size")
    elif name == "aten::_to_copy":
        here = not isinstance(args[0], StandIn) and _is("cuda", [kwargs.get("device")])
        if here and not kwargs.get("non_blocking"):
            _note("copy")
    elif name == "aten::copy_":
        across = isinstance(args[0], StandIn) != isinstance(args[1], StandIn)
        if across and not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
            _note("copy")


def _note(why: str) -> None:
    here = next((f for f in reversed(traceback.extract_stack()) if _ours(Path(f.filename))), None)
    _waits.append(f"{why} {Path(here.filename).relative_to(ROOT)}:{here.name}" if here else why)


def _ours(path: Path) -> bool:
    return ROOT in path.parents and path.relative_to(ROOT).parts[0] in ("trainer", "eval", "pipeline")


def _is(kind: str, values: list[Any]) -> bool:
    return any(isinstance(v, (str, torch.device)) and torch.device(v).type == kind for v in values)
