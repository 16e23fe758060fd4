"""A simulated GPU for tests: values are on the CPU, and the device refuses what a GPU would refuse.

Its tensors say that they are on the device ``meta``, to which torch moves tensors without a driver. Operations of
tensors of two devices raise an error, and so does `Tensor.numpy`. Whenever the host reads numbers, or needs a size that
depends on them, it is recorded as waiting. What cannot be simulated: changes of a shape in place, as in products of a
vector, a matrix and a vector; tensors made of a list of numbers; streams and pinned memory.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

NAME = "meta"
_COPIES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put", "index_put_", "_unsafe_index"}
_LISTS = {"cat", "stack"}
_WAITING = {"_local_scalar_dense", "_unique2", "bincount", "equal", "masked_select", "nonzero", "unique_dim"}


class OnDevice(Tensor):
    """Tensor of the device."""

    on_cpu: Tensor
    """Its values."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        tensor = Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=torch.device(NAME),
        )  # fmt: skip
        tensor.on_cpu = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **_: Any) -> Any:
        raise AssertionError(f"{args[0]} in a thread in which the device is not simulated")

    def tolist(self) -> Any:
        """Return the numbers, for which the host waits."""
        return self.cpu().tolist()

    def _description(self, **_: Any) -> str:
        return f"on the device: {self.on_cpu}"

    __repr__: ClassVar[Any] = _description


class _Mode(TorchDispatchMode):
    """Mode of one thread."""

    def __init__(self, waited: list[str]) -> None:
        TorchDispatchMode.__init__(self)
        self._waited = waited

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = function.overloadpacket.__name__
        tensors: list[Tensor] = []
        tree_map_only(Tensor, tensors.append, (args, kwargs))
        ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        on_device = bool(ours)
        indices = args[1] if name in _INDEXED else []
        if ours and name not in _COPIES:
            _check(name, tensors, indices)
        if kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]).type == NAME
            kwargs["device"] = torch.device("cpu")
        elif name == "copy_":
            on_device = isinstance(args[0], OnDevice)
        masked = any(isinstance(index, OnDevice) and index.dtype == torch.bool for index in indices)
        if ours and (name in _WAITING or masked or (name in _COPIES and not on_device)):
            self._waited.append(name)
        args, kwargs = tree_map_only(OnDevice, lambda tensor: tensor.on_cpu, (args, kwargs))
        result = function(*args, **kwargs)
        if not on_device:
            return result
        wrapped = {id(tensor.on_cpu): tensor for tensor in ours}

        def wrap(tensor: Tensor) -> Tensor:
            before = wrapped.get(id(tensor), tensor)  # what is changed in place stays the same object
            return before if isinstance(before, OnDevice) and before.shape == tensor.shape else OnDevice(tensor)

        return tree_map_only(Tensor, wrap, result)


def _check(name: str, tensors: list[Tensor], indices: Any) -> None:
    """Raise an error for tensors of two devices; numbers and indices may be on the CPU."""
    for tensor in tensors:
        if tensor.is_meta and not isinstance(tensor, OnDevice):
            raise RuntimeError(f"{name}: a tensor without values; was an index a list of numbers?")
        number = tensor.ndim == 0 and name not in _LISTS
        if not (isinstance(tensor, OnDevice) or number or any(tensor is index for index in indices)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, got one on the CPU")


class SimulatedDevice:
    """Context in which the device exists, in this thread and in those of the pools that it uses."""

    def __init__(self) -> None:
        self.waited: list[str] = []
        """Operations for which the host waited."""
        self._stack = ExitStack()

    def __enter__(self) -> "SimulatedDevice":
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        submit = ThreadPoolExecutor.submit

        def in_mode(pool: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            def run() -> Any:
                with _Mode(self.waited):
                    return work(*args, **kwargs)

            return submit(pool, run)

        patch.setattr(ThreadPoolExecutor, "submit", in_mode)
        patch.setattr(torch, "inference_mode", torch.no_grad)  # the tensors cannot be made in inference mode
        autocast = torch.autocast

        def cast(kind: str, *args: Any, **kwargs: Any) -> Any:
            return nullcontext() if kind == NAME else autocast(kind, *args, **kwargs)

        patch.setattr(torch, "autocast", cast)
        self._stack.enter_context(_Mode(self.waited))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
