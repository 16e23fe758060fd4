"""Activations in a file, of which rows are read when somebody asks for them, and what was asked for."""

import tempfile
import threading

import numpy as np
import torch
from torch import Tensor

from repsim.metrics.base import Array


class Streamed:
    """The `Rows` of a numpy file. It is a file, so nothing of it is at hand: a recipe has to read it again."""

    def __init__(self, array: Array) -> None:
        with tempfile.TemporaryFile() as file:  # the map keeps it
            self._file = np.memmap(file, array.dtype, "w+", shape=array.shape)
        self._file[:] = array
        self.shape = array.shape
        self.dtype = torch.from_numpy(array[:0]).dtype
        self.device = torch.device("cpu")
        self.reads: list[int] = []
        """Samples of each time that somebody asked."""
        self.readers: set[str] = set()
        """The threads that did."""

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        values = np.array(self._file[rows.numpy() if isinstance(rows, Tensor) else rows])
        self.reads.append(len(values))
        self.readers.add(threading.current_thread().name)
        return torch.from_numpy(values)
