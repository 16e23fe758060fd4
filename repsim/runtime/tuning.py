"""Sizes, thresholds and rates that determine block sizes and the choice of algorithms.

The values of measures depend on these settings only by rounding errors; some settings determine how many random draws a
study makes. The defaults suit processors with a few MiB of cache and machines with a few GiB of memory. Tests use small
sizes, so that small layers are computed by the algorithms for large ones::

    with tuning.using(panel=64):
        repsim.compare(...)

A setting is valid in the thread that makes it, and in the threads that this thread starts with `in_context`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Tuning:
    """Sizes, thresholds and rates of all algorithms."""

    # All pairs of layers
    panel: int = 2048
    """Samples whose features are read at once, if memory allows."""
    smallest_panel: int = 64
    """Smallest number of samples that are read at once, if memory is short."""
    tile: int = 512
    """Largest side of a tile of a Gram matrix, in samples."""
    tile_stack: int = 2**27
    """Bytes of a stack of tiles, one tile of every layer."""
    run: int = 4096
    """Samples over which cross-moments are summed in float32 before they are added to sums in float64."""
    unit_memory: int = 2**30
    """Bytes for the sums of one unit, if memory allows. Larger units would hardly reduce the reading."""
    unit_memory_kept: int = 2**27
    """The same if layers are kept in memory, so that larger units reduce no reading."""
    narrow: int = 32
    """Layers with fewer features than this are multiplied in float64: their rounding errors would not average out."""
    spare_memory: int = 160 * 2**20
    """Bytes reserved for what a plan does not count: buffers of the libraries, arrays of a few numbers a sample. The
    peak memory of identical runs varies by 45 MB; with 128 MiB one run exceeded the limit by 5 MB."""

    # Layers that are read or multiplied in float64
    piece: int = 2**17
    """Values that are read at once, and processed by one thread."""
    scratch: int = 2**16
    """Values in float64 that a thread works on at once, few enough for the cache of one core."""
    small_layer: int = 2**20
    """Values of a layer up to which it is prepared by one thread, several layers at a time, because dividing it takes
    longer than the work."""
    prepared_at_once: int = 2**26
    """Bytes of larger layers that all threads may prepare at a time in the same way, if there are many of them."""
    slab: int = 2**20
    """Values of a run of samples that is multiplied at once, so that it is converted to float64 within the cache."""
    widened: int = 2**20
    """Values that are converted to float64 at once; the rest of a wide layer stays in its own dtype."""
    product_panel: int = 2**25
    """Values of a panel of samples, if the n x n matrix XX' is computed from pairs of panels."""

    # GPUs
    gpu_share: int = 8
    """Factor by which a GPU processes more values at once (`values_at_once`) than a processor core in its cache: a
    launch takes as long as a pass over a few MiB, and the cache of a large GPU holds some tens of MiB."""

    # Subspaces
    squared_from: int = 512
    """Number of samples or features from which X'X (or XX') in float64 separates float32 activations from rounding
    errors."""
    krylov_from: int = 8192
    """Number of samples and features from which a part of the variance is computed in a Krylov space. Below, the
    eigenvalues of X'X or XX' take only seconds."""
    krylov_block: int = 128
    """Columns added to the Krylov space in each step. Fewer need fewer operations, but read the layer more often."""
    krylov_error: float = 2.0**-24
    """Largest relative backward error: rounding every value of X to float32 gives ||E||_F <= 2^-24 ||X||_F."""

    # Neighbours
    neighbour_side: int = 2048
    """Side of a tile of the similarity matrix, in samples; one tile is in memory at a time."""
    neighbour_table: int = 2**22
    """Similarities of a block of samples with all samples that are in memory at once."""
    neighbour_ranks: int = 2**20
    """Neighbour ranks of a block of samples with respect to all samples, few enough for the cache."""
    neighbour_bits: int = 31
    """Layers whose neighbours are stored as bits of one word."""
    neighbour_gathered: int = 2**18
    """Feature values that are gathered at once, few enough for the cache."""

    # Permuted samples
    permuted_side: int = 2048
    """Features of one side, over several permutations, that are multiplied at once."""
    permuted_run: int = 1024
    """Samples over which products are summed in the layers' dtype before they are added to sums in float64."""
    permuted_entry: float = 500.0
    """Cost of an entry of a Gram matrix, in floating-point operations of feature space. This and the two costs below
    were measured on a CPU (AVX-512, n = 2,000; 1, 4 x 4 and 17 x 13 layers), with an error of up to a third."""
    permuted_layer: float = 30.0
    """Additional cost for each layer that is gathered."""
    permuted_pair: float = 4.0
    """Additional cost for each pair of layers."""

    # Matching of units
    transport_partners: int = 8
    """Partners of each unit that a transport plan considers first."""
    transport_sparse_from: int = 2**18
    """Pairs of units from which a transport plan does not consider all of them at once."""

    # Topology
    heat_exact: int = 4096
    """Largest number of samples for which `imd` computes all eigenvalues, which takes a few seconds."""
    trees_apart: float = 0.25
    """Threshold of `rtd`: if the minimum spanning tree of X is longer than that of the minimum of both distance
    matrices by more than this times n, connected components are counted separately. With 500 samples the other method
    takes 1 to 10 seconds below the threshold, and minutes above."""

    # Comparisons
    chance_pairs: int = 100_000
    """Largest number of pairs of layers for which a comparison computes chance levels, at up to 3 ms each."""

    # Studies
    study_seconds: float = 10.0
    """Seconds that the permutations, and the half-samples, of one measure may take at nominal rates. This bounds the
    number of operations and not the time, so that a study does the same on every machine."""
    half_samples: int = 20
    """Number of half-samples for measures without a leave-one-out formula."""
    residual_samples: int = 300
    """Largest number of samples on which residual kernels are permuted; of more, a random part is used."""
    permuted_products: float = 4e11
    """Products of entries that the permutations of residual kernels may take; a random part of the samples is used if
    all samples take more."""
    permutations_at_once: int = 100
    """Number of permutations whose values are in memory at once."""
    exact_samples: int = 500
    """Largest number of samples for which kernels are permuted exactly; with more, layers are first truncated to shared
    directions."""
    weights_at_once: int = 2**22
    """Number of random weights of a multiplier bootstrap that are in memory at once."""
    jackknife_memory: int = 2**22
    """Bytes of leave-one-out matrices that are processed at once, few enough for the cache."""
    map_draws: int = 200
    """Number of bootstrap draws that estimate the stability of clusters."""
    halvings: int = 8
    """Number of random splits of the samples: one half selects the best match of layers, the other evaluates it."""

    # Series of models: sizes that do not depend on the number of models or on memory, as values would in the last bits
    series_panel: int = 1024
    """Samples whose features are read at once."""
    series_tile: int = 256
    """Side of a tile of a Gram matrix, in samples."""
    series_models: int = 8
    """Number of models that are compared in one pass over the Gram matrices, beside those that they are compared with,
    and after which finished work is kept on disk."""

    # Progress bars in notebooks
    bar_after: float = 0.5
    """Seconds before a bar is shown."""
    bar_every: float = 0.1
    """Seconds between two updates of the bar."""


_CURRENT = ContextVar("tuning", default=Tuning())  # noqa: B039 - it is frozen


def current() -> Tuning:
    """Return the current settings."""
    return _CURRENT.get()


def values_at_once(values: int, device: str) -> int:
    """Return the number of values to process at once on a type of device, from that for a processor's cache.

    >>> values_at_once(1000, "cpu"), values_at_once(1000, "cuda")
    (1000, 8000)
    """
    return values if device == "cpu" else values * current().gpu_share


@contextmanager
def using(**changes: Any) -> Iterator[Tuning]:
    """Change settings during the block, and yield the new settings.

    >>> with using(panel=64):
    ...     current().panel
    64
    >>> current().panel
    2048
    """
    token = _CURRENT.set(dataclasses.replace(current(), **changes))
    try:
        yield current()
    finally:
        _CURRENT.reset(token)


def in_context(work: Callable[..., T]) -> Callable[..., T]:
    """Return ``work`` as a function for another thread that runs with the current settings."""
    return partial(copy_context().run, work)
