"""Sizes, thresholds and rates by which work is cut and algorithms are chosen: one frozen object, in one place.

Values of measures depend on them only by rounding; how much a study draws is set here, too. Defaults suit processors
with some MiB of cache and machines with some GiB of memory. Tests set small ones, so that small layers take the ways of
large ones::

    with tuning.using(panel=64):
        repsim.compare(...)

A setting holds for the thread that makes it, and for the threads that it starts for its work (`in_context`).
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
    """All sizes, thresholds and rates."""

    # All pairs of layers
    panel: int = 2048
    """Samples whose features are read at once, where memory allows."""
    smallest_panel: int = 64
    """The same, where it does not."""
    tile: int = 512
    """Samples of the side of a tile of Gram matrices, at most."""
    tile_stack: int = 2**27
    """Bytes of a stack of tiles, one of every layer."""
    run: int = 4096
    """Samples over which cross-moments are summed in float32 before they are added in float64."""
    unit_memory: int = 2**30
    """Bytes for the sums of one unit, where memory allows; more would save no reading worth the while."""
    unit_memory_kept: int = 2**27
    """The same where layers stay in memory, and no reading is saved."""
    narrow: int = 32
    """Layers with fewer features are multiplied in float64: their rounding errors would not average out."""
    spare_memory: int = 160 * 2**20
    """Bytes for what a plan does not count: the libraries' own buffers, arrays of a few numbers a sample. The peak of
    one and the same run scatters by 45 MB; with 128 MiB a busy machine was once seen 5 MB above what was allowed."""

    # Layers that are read or multiplied in float64
    piece: int = 2**19
    """Values that are handled at once: in float64 they stay in the cache."""
    slab: int = 2**20
    """Values of a run of samples that is multiplied at once: little enough to be widened within the cache."""
    widened: int = 2**20
    """Values that are widened to float64 at once: what is read of a wide layer stays in its own dtype."""
    product_panel: int = 2**25
    """Values of a panel of samples, where the n x n matrix XX' is made of pairs of them."""

    # Subspaces
    squared_from: int = 512
    """From so many samples or features on, X'X (or XX') in float64 tells float32 activations from their rounding."""
    krylov_from: int = 8192
    """From so many samples and features on, part of the variance is looked for in a Krylov space. Below, the matrix
    products and the eigenvalues of X'X or XX' take seconds, and there is little to win."""
    krylov_block: int = 128
    """Columns that the Krylov space grows by. Fewer need fewer operations in all, but more readings of the layer."""
    krylov_error: float = 2.0**-24
    """Largest backward error: ||E||_F <= 2^-24 ||X||_F is what rounding every value of X to float32 may do to it."""

    # Neighbours
    neighbour_side: int = 2048
    """Samples of a tile's side: of the matrix of all similarities, this much is there at a time."""
    neighbour_table: int = 2**22
    """Similarities of some samples with all."""
    neighbour_ranks: int = 2**20
    """Ranks of some samples' neighbours, in a table of all samples: little enough for the cache."""
    neighbour_bits: int = 31
    """Layers whose neighbours are bits of one word."""
    neighbour_gathered: int = 2**18
    """Values of features that are gathered at once: little enough for the cache."""

    # Permuted samples
    permuted_side: int = 2048
    """Features of a side that are multiplied at once, those of several permutations together."""
    permuted_run: int = 1024
    """Samples of which products are summed in the layers' dtype, before they are in float64."""
    permuted_entry: float = 500.0
    """What an entry of Gram matrices takes, in floating-point operations of feature space. This, and the two below,
    were measured on a CPU (AVX-512, n = 2,000; 1, 4 x 4 and 17 x 13 layers), to within a third."""
    permuted_layer: float = 30.0
    """What each layer that is gathered adds to it."""
    permuted_pair: float = 4.0
    """What each pair of layers adds to it."""

    # Topology
    heat_exact: int = 4096
    """Samples up to which `imd` computes all eigenvalues, in some seconds."""
    trees_apart: float = 0.25
    """From so much length a sample, by which a spanning tree of X is longer than that of both, `rtd` counts components
    on their own. At 500 samples the other way takes 1 to 10 seconds below, and minutes above."""

    # Studies
    study_seconds: float = 40.0
    """Seconds that permutations, and half-samples, of one measure may take at nominal rates. A bound on arithmetic and
    not on time: the same study does the same on every machine."""
    half_samples: int = 20
    """Half-samples of measures without a leave-one-out formula."""
    permutations_at_once: int = 100
    """Permutations whose values are in memory at once."""
    exact_samples: int = 500
    """Samples up to which kernels are permuted as they are; with more they are cut to shared directions."""
    weights_at_once: int = 2**22
    """Random weights of a multiplier bootstrap that are in memory at once."""
    jackknife_memory: int = 2**26
    """Bytes of the matrices without each sample that are looked at at once."""
    map_draws: int = 200
    """Bootstrap draws by which the stability of clusters is measured."""
    halvings: int = 8
    """Random halves of the samples on which the best match of layers is found and measured."""

    # Progress bars in notebooks
    bar_after: float = 0.5
    """Seconds before a bar is shown."""
    bar_every: float = 0.1
    """Seconds between two drawings of it."""


_CURRENT = ContextVar("tuning", default=Tuning())  # noqa: B039 - it is frozen


def current() -> Tuning:
    """The setting that holds here."""
    return _CURRENT.get()


@contextmanager
def using(**changes: Any) -> Iterator[Tuning]:
    """Change some settings for the block.

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
    """The same work for another thread, with the settings that hold here."""
    return partial(copy_context().run, work)
