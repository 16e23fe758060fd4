"""The largest tensor that any operation makes."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Values of the largest tensor that any operation of this thread gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for output in out if isinstance(out, list | tuple) else [out]:
            if isinstance(output, torch.Tensor):
                self.values = max(self.values, output.untyped_storage().nbytes() // output.element_size())
        return out
