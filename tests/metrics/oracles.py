"""Numbers that the measures must give: docs/conformance.md is made of them, and test_oracles.py asks for each.

None of them was computed by the code that is held against them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from repsim.metrics.base import Array

Data = Literal["uniform", "gaussian"]
DATA: dict[Data, str] = {
    "uniform": "np.random.seed(0); X, Y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))",
    "gaussian": "np.random.seed(1337); X = np.random.randn(100, 10); Y = np.random.randn(100, 10) + X",
}


def layers(data: Data) -> tuple[Array, Array]:
    """X and Y, with the generator that the numbers were published for."""
    if data == "uniform":
        np.random.seed(0)  # noqa: NPY002
        return np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))  # noqa: NPY002
    np.random.seed(1337)  # noqa: NPY002
    x = np.random.randn(100, 10)  # noqa: NPY002
    return x, np.random.randn(100, 10) + x  # noqa: NPY002


@dataclass(frozen=True)
class Oracle:
    """One number: measure(X, Y), or measure(Y, X) where they are swapped."""

    spec: str
    value: float
    source: str
    data: Data = "uniform"
    swapped: bool = False
    within: float = 1e-12
    """Largest difference, relative above 1. What iterates, or subtracts, is allowed more; published digits are few."""

    @property
    def name(self) -> str:
        """Of the measure."""
        return self.spec.partition(":")[0]


def _resi(name: str) -> str:
    return f"the formula of ReSi's {name}"


_NOTEBOOK = "Kornblith et al. 2019, the published notebook"
_SONG = "the formula of Song et al. 2012, eq. 5"

ORACLES = (
    Oracle("cka", 0.513456489506, _NOTEBOOK, "gaussian"),
    Oracle("cka:estimator=biased", 0.557613256612, _NOTEBOOK, "gaussian"),
    Oracle("cka:kernel=rbf,estimator=biased", 0.654831182261, _NOTEBOOK, "gaussian"),
    Oracle("cka", 0.023598698580556743, _SONG),
    Oracle("cka:estimator=biased", 0.4893427391044151, _resi("CKA")),
    Oracle("cka:kernel=rbf,sigma=1", 0.06763941584088347, _SONG),
    Oracle("cka:kernel=rbf,sigma=1,estimator=biased", 0.8940267986288912, "the formula of Kornblith et al. 2019"),
    Oracle("rsa", -0.004092795694065198, _resi("RSA")),
    Oracle("rsm_difference", 4.284020876165366, _resi("RSMDiff")),
    Oracle("distance_correlation", 0.8852696524417103, _resi("DistCorr")),
    Oracle("eigenspace_overlap", 0.8310349228244533, _resi("EOS")),
    Oracle("gulp", 7.084992868422333, _resi("Gulp")),
    Oracle("cca", 0.8901049738157812, "the formula of Hotelling 1936"),
    Oracle("cca:summary=r2", 0.8583001426315537, "the formula of Kornblith et al. 2019"),
    Oracle("svcca", 0.7831814122650432, "the formula of Raghu et al. 2017 (k = 21 and 21)"),
    Oracle("svcca:variance=0.95", 0.728160558683519, "the formula of Raghu et al. 2017 (k = 16 and 17)"),
    Oracle("nuclear", 0.7227787175993363, "||X'Y||_* of the centred layers, each over its norm"),
    Oracle("angular_shape", 0.7629815799340971, _resi("AngShape")),
    Oracle("procrustes", 0.7446090012894865, _resi("OrthProc")),
    Oracle("procrustes_size", 5.851126077853428, _resi("ProcDist")),
    Oracle("permutation_procrustes", 9.346931991014133, _resi("PermProc")),
    Oracle("aligned_cosine", 0.9284614848625562, _resi("AlignCos")),
    Oracle("linear_regression", 0.863424815867745, _resi("LinReg")),
    Oracle("linear_regression", 0.8639582977842274, _resi("LinReg"), swapped=True),
    Oracle("hard_correlation", 0.3363914592542919, _resi("HardCorr")),
    Oracle("semi_correlation", 0.3761355416924346, _resi("SoftCorr")),
    # a best soft matching of as many units as units is a permutation; the 0.33659603595733645 of an earlier table is
    # above that maximum, so it was something else
    Oracle("soft_matching", 0.3363914592542919, "Birkhoff: hard_correlation, where p = q"),
    Oracle("jaccard_knn", 0.21488074762068568, _resi("Jaccard")),
    Oracle("rank_similarity", 0.137112252104584, _resi("RankSim")),
    Oracle("second_order_cosine", 0.9230452955394255, _resi("2nd-Cos")),
    Oracle("magnitude_difference", 0.09000616637580139, _resi("MagDiff")),
    Oracle("concentricity_difference", 0.005424143247378943, _resi("ConDiff")),
    Oracle("uniformity_difference", 0.00784056036691716, _resi("UniDiff")),
)

_NONE = "code was published, but no number on data that anybody can make"

WITHOUT = {
    "pwcca": "the published code computes something else than Morcos et al. 2018 define",
    "cka_units": "has no value on these data, whose units have nothing in common",
    "mutual_knn": _NONE,
    "cknna": _NONE,
    "cycle_knn": _NONE,
    "geometry_score": _NONE,
    "imd": _NONE,
    "rtd": _NONE,
}
"""Measures without a number, and why: the contract and their own tests have to be enough."""

AWAITED: frozenset[str] = frozenset()
"""Measures that may still be missing from the registry; everything else that has a number has to be there."""
