"""Compute the parts of a claim about two families: effects, intervals and tests of some of their networks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float64
from scipy import stats

from repsim.results.variables import CONTROL_PAIRS
from repsim.study.claims import CLAIMED, Part, Subject
from repsim.study.design import Member, Pair
from repsim.study.exchange import exchange_test, network_variance
from repsim.study.formatting import number
from repsim.study.inference import Estimate, Inference


@dataclass(frozen=True, eq=False)
class FamilyPair:
    """Two families, the pairs of their trained models that have all controls, and the models that lack one."""

    a: str
    b: str
    counted: tuple[Pair, ...]
    """Pairs of a trained model of a (first) with one of b, each with all of its controls."""
    without_twins: tuple[str, ...]
    """Architectures of both families without an untrained network."""

    @property
    def name(self) -> str:
        """Label of the pair, ``a x b``."""
        return f"{self.a} x {self.b}"

    @property
    def by_architectures(self) -> dict[tuple[str, str], list[Pair]]:
        """The counted pairs of each pair of architectures."""
        pairs: dict[tuple[str, str], list[Pair]] = {}
        for pair in self.counted:
            pairs.setdefault((pair.a.architecture, pair.b.architecture), []).append(pair)
        return pairs


@dataclass(frozen=True)
class _Compared:
    """Networks that a part is about."""

    of: Subject
    name: str
    pairs: Sequence[Pair]
    """Pairs of trained networks."""
    only: Member | None = None
    """The untrained network, if it alone is the control."""


def parts_of(inference: Inference, families: FamilyPair) -> list[Part]:
    """Return all parts: about pairs of architectures for all kinds, about networks for those that a claim rests on."""
    if not families.counted:
        return []
    parts = []
    for kind in inference.indices.kernels:
        parts += _parts_of_architectures(inference, kind, families)
        if kind in CLAIMED:
            parts += _parts_of_networks(inference, kind, families)
    return parts


def _parts_of_architectures(inference: Inference, kind: str, families: FamilyPair) -> list[Part]:
    """Return the parts about pairs of architectures, in partial values and in units of energy."""
    by_architectures = families.by_architectures
    parts = []
    for (a, b), pairs in by_architectures.items():
        compared = _Compared("architectures", f"{a} with {b}" if len(by_architectures) > 1 else "", pairs)
        sides = _networks(inference, pairs, 0), _networks(inference, pairs, 1)
        trained_a, trained_b = (np.array([member.trained for member in side]) for side in sides)
        for in_energy in _units(inference, kind):
            part, excess = _over_samples(inference, kind, families, compared, in_energy=in_energy)
            values = _network_values(inference, kind, sides, "energy" if in_energy else "index")
            p, least = exchange_test(values, trained_a, trained_b, seed=inference.seed)
            low, high, p_crossed = _crossed(excess, *network_variance(values, trained_a, trained_b), inference.units)
            part = replace(
                part, p_exchange=p, p_exchange_least=least, p_crossed=p_crossed, network_low=low, network_high=high
            )
            parts.append(part)
    return parts


def _parts_of_networks(inference: Inference, kind: str, families: FamilyPair) -> Iterator[Part]:
    """Yield the parts about each trained network, then about each untrained network, which is a control of its own."""
    twins_of = inference.design.twins_of
    trained = dict.fromkeys(member for pair in families.counted for member in (pair.a, pair.b))
    untrained = dict.fromkeys(twin for m in trained for twin in twins_of(m) if inference.is_in_study(twin))
    subjects = [_Compared("trained network", m.name, [p for p in families.counted if m in {p.a, p.b}]) for m in trained]
    subjects += [
        _Compared(
            "untrained network", twin.name,
            [p for p in families.counted if twin in {*twins_of(p.a), *twins_of(p.b)}], twin,
        )
        for twin in untrained
    ]  # fmt: skip
    for compared in subjects:
        for in_energy in _units(inference, kind):
            yield _over_samples(inference, kind, families, compared, in_energy=in_energy)[0]


def _units(inference: Inference, kind: str) -> tuple[bool, ...]:
    return (False, True) if kind in inference.indices.energies else (False,)


def _over_samples(
    inference: Inference, kind: str, families: FamilyPair, compared: _Compared, *, in_energy: bool
) -> tuple[Part, Mapping[str, Estimate]]:
    """Return a part as far as it follows from samples, and how far trained networks exceed each control."""
    levels, excess = inference.effects(kind, compared.pairs, in_energy=in_energy, only=compared.only)
    estimates = list(excess.values())
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.array([estimate.value / estimate.se for estimate in estimates])
    value, low, high, support = (
        float(np.min([getattr(one, field) for one in estimates])) for field in ("value", "low", "high", "support")
    )
    part = Part(
        compared.of, compared.name, kind, in_energy, value, low, high,
        control=_strongest(levels, families, compared.only),
        p_samples=float(np.max(stats.t.sf(t, inference.units - 1))), support=support, units=inference.units,
    )  # fmt: skip
    return part, excess


def _strongest(levels: Mapping[str, float], families: FamilyPair, only: Member | None) -> str:
    """Describe the control with the largest value."""
    a, b = families.a, families.b
    by_control = {
        "both untrained": f"untrained {a} with untrained {b}",
        "first trained": f"trained {a} with untrained {b}",
        "second trained": f"untrained {a} with trained {b}",
    }
    name = max(levels, key=lambda control: -np.inf if np.isnan(levels[control]) else levels[control])
    which = by_control[name] if only is None else f"{by_control[name]} (of {only.name})"
    return f"{which} ({number(levels[name])})"


def _crossed(
    excess: Mapping[str, Estimate],
    variance: Float64[np.ndarray, " 3"],
    freedom: Float64[np.ndarray, " 3"],
    units: int,
) -> tuple[float, float, float]:
    """Return the smallest ends over the controls of intervals that cross samples and networks, and the largest p.

    The variances add up. What a network and a sample have together counts in both, so the intervals are rather long.
    """
    estimates = [excess[name] for name in CONTROL_PAIRS]
    se2 = np.array([estimate.se**2 for estimate in estimates])
    total = se2 + variance
    values = np.array([estimate.value for estimate in estimates])
    with np.errstate(invalid="ignore", divide="ignore"):
        df = total**2 / (se2**2 / (units - 1) + np.where(variance > 0, variance**2 / freedom, 0))
        p = np.minimum(1, 2 * stats.t.sf(values / np.sqrt(total), df))
    margin = stats.t.ppf(0.975, df) * np.sqrt(total)
    return float(np.min(values - margin)), float(np.min(values + margin)), float(np.max(p))


def _networks(inference: Inference, pairs: Sequence[Pair], side: int) -> list[Member]:
    """Return the networks of one side of the pairs, of one architecture, and their untrained twins."""
    trained = list(dict.fromkeys((pair.a, pair.b)[side] for pair in pairs))
    twins = inference.design.twins_of(trained[0])
    return [*trained, *(twin for twin in twins if inference.is_in_study(twin))]


def _network_values(
    inference: Inference, kind: str, sides: Sequence[Sequence[Member]], what: str
) -> Float64[np.ndarray, "A B"]:
    a, b = sides
    values = np.full((len(a), len(b)), np.nan)
    for (i, x), (j, y) in product(enumerate(a), enumerate(b)):
        if x.name != y.name:  # an architecture can be in both families, and then they have twins in common
            values[i, j] = inference.theta[inference.column(kind, Pair(x, y), what)]
    return values
