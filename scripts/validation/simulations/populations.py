"""Networks whose true similarities are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repsim.study.design import Design, Pair
from repsim.study.indices import TWINS, Indices, matches_on
from simulations.studies import Array, FeatureKernels, member
from simulations.unrelated_networks import spectrum

_SEEN = {True: (0.6, 0.45, 0.3), False: (0.75, 0.7, 0.65)}
"""Share of the input in the kernel of a layer, by depth; the key says whether the network is trained."""
_LEARNT = {"universal": (0.12, 0.2, 0.25), "family": (0.1, 0.15, 0.2)}
_NEAR = np.array([[0.7, 0.3, 0.0], [0.15, 0.7, 0.15], [0.0, 0.3, 0.7]])
"""Division of a share among three latents, by depth: neighbouring layers share more than distant layers."""
STUDY = Design(
    (member("A0", "A"), member("A1", "A"), member("B0", "B")),
    tuple(member(f"{family}.untrained", family, trained=False) for family in "AB"),
)
_SIZES = {"input": 16, "universal": 8, "family": 8, "own": 12}


@dataclass(frozen=True, eq=False)
class Population:
    """Gaussian layers x_j = a_j z_j with latents z of unit variance, for which all true values are known.

    Debiased CKA of two layers is ||Sigma_xy||^2 / (||Sigma_xx|| ||Sigma_yy||). Sigma is diagonal, so this is the cosine
    of the vectors a_j^2. The other numbers of a study are functions of these values.
    """

    loads: Array
    """Loadings a_j of the layers, of shape (layers, latents)."""
    of: dict[str, NDArray[np.int64]]

    @property
    def R(self) -> Array:  # noqa: N802
        """Debiased CKA of all pairs of layers for infinitely many samples."""
        unit = self.loads**2 / np.linalg.norm(self.loads**2, axis=1, keepdims=True)
        return np.asarray(unit @ unit.T)

    def layers(self, rng: np.random.Generator, n: int, *, heavy: bool = False) -> list[Array]:
        """Draw n samples of all layers; with heavy tails, all latents of a sample have a common factor, and are t3."""
        z = rng.normal(size=(n, self.loads.shape[1]))
        if heavy:
            z *= np.sqrt(3 / rng.chisquare(3, (n, 1)))
        return [z[:, a > 0] * a[a > 0] for a in self.loads]

    def draw(self, rng: np.random.Generator, n: int, *, heavy: bool = False) -> FeatureKernels:
        """Draw the kernels of n samples of all layers."""
        return FeatureKernels(tuple(self.layers(rng, n, heavy=heavy)), self.of)

    def theta(self, design: Design) -> tuple[Indices, Array]:
        """Return all indices of a study and their true values, along the best matches of the population."""
        none, matrices = Indices(design, self.of, len(self.R), {}), self.R[None]
        exact = Indices(design, self.of, len(self.R), matches_on(none, matrices))
        return exact, exact.evaluate(matrices)


def population(kind: str) -> Population:
    """Return three trained networks of two families, an untrained one of each, with three layers, and their input."""
    latents: dict[tuple[str, str], Array] = {}
    names = [("input", ""), *(("universal", str(d)) for d in range(3))]
    names += [("family", f"{family}{d}") for family in "AB" for d in range(3)]
    names += [("own", f"{network.name}{d}") for network in STUDY.members for d in range(3)]
    for part, name in names:
        s = spectrum(kind, _SIZES[part])
        latents[part, name] = s / (s**4).sum() ** 0.25  # the kernel has norm 1
    ends = np.cumsum([0, *(len(s) for s in latents.values())])
    place = {key: slice(*ends[k : k + 2]) for k, key in enumerate(latents)}

    def layer(shares: dict[tuple[str, str], float]) -> Array:
        loads = np.zeros(ends[-1])
        for key, share in shares.items():
            loads[place[key]] = share**0.25 * latents[key]
        return loads

    loads: list[Array] = []
    of = {}
    for network in STUDY.members:
        of[network.name] = np.arange(len(loads), len(loads) + 3)
        for depth in range(3):
            shares = {("input", ""): _SEEN[network.trained][depth]}
            for part, name in (("universal", ""), ("family", network.family)) if network.trained else ():
                shares |= {(part, f"{name}{d}"): _LEARNT[part][depth] * _NEAR[depth, d] for d in range(3)}
            rest = 1 - sum(shares.values())
            shares |= {("own", f"{network.name}{d}"): rest * _NEAR[depth, d] for d in range(3)}
            loads.append(layer(shares))
    of["input"] = np.array([len(loads)])
    return Population(np.stack([*loads, layer({("input", ""): 1.0})]), of)


def truths(exact: Indices, theta: Array, kind: str, pair: Pair) -> dict[str, float]:
    """Return true values of the columns of `repsim.study.dataset_pairs` for a pair and a kind of debiased CKA."""

    def mean(what: str, pairs: Sequence[Pair]) -> float:
        names = {frozenset({one.a.name, one.b.name}): one.name for one in exact.pairs}
        columns = [exact.column_of[what, kind, names[frozenset({one.a.name, one.b.name})]] for one in pairs]
        return float(theta[columns].mean())

    values = {"index": mean("index", [pair]), "split_half": mean("index", [pair])}
    if kind in exact.energies:
        values["energy"] = mean("energy", [pair])
    controls = exact.design.controls_of(pair)
    if kind != TWINS and all(controls.values()):
        values["learned"] = values["index"] - max(mean("index", pairs) for pairs in controls.values())
    return values


def covered(low: float, value: float, high: float) -> float:
    """Return whether an interval holds the true value, as a number."""
    return float(low <= round(value, 9) + 0.0 <= high)
