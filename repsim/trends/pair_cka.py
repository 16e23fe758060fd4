"""Compute debiased CKA of pairs of models, raw and given the input, with each sample left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from repsim.engine.model_pairs import Block, ModelPairs
from repsim.engine.preparation import prepare
from repsim.metrics.recipes.gram import CentredGram, Gram
from repsim.metrics.recipes.groups import Groups
from repsim.study.gram_passes import varies_in_one_sample
from repsim.study.partial_cka import MIN_ENERGY
from repsim.trends.arrangement import Pair
from repsim.trends.work import Record, Work, control_sources, layer_name, models_of

_UNRELATED_SD = 2.02
"""95 % point of debiased CKA of unrelated layers in standard deviations, at most: it depends on their skewness, and is
1.64 for a normal distribution, 2.01 for layers with one direction each."""


def cka_of_pairs(work: Work, pairs: Sequence[Pair], step: Callable[[], None]) -> dict[Pair, Record]:
    """Compute debiased CKA of the pairs, raw and given the input, with each sample or group left out."""
    models = models_of(pairs)
    inputs = control_sources(work)
    sources = [work.source(point, array) for point in models for array in point.arrays]
    size = sum(4 * work.n * int(np.prod(p.store[name].shape[1:])) for p in models for name in p.arrays)
    keep = size <= work.memory // 2
    grams: Mapping[str, Any] = prepare(CentredGram(), [*sources, *inputs], device=work.device, keep=keep).factors
    of_input = {source.name for source in inputs}
    factors: dict[str, Any] = {
        name: gram if work.groups is None else gram.grouped(work.groups)
        for name, gram in grams.items()
        if name in of_input or not varies_in_one_sample(gram)
    }
    layers: list[Gram] = []
    slices: dict[str, slice] = {}
    defined: dict[str, Int64[np.ndarray, " d"]] = {}
    for point in models:
        names = [layer_name(point, array) for array in point.arrays]
        defined[point.name] = np.array([k for k, name in enumerate(names) if name in factors], int)
        slices[point.name] = slice(len(layers), len(layers) + len(defined[point.name]))
        layers += [factors[names[k]] for k in defined[point.name]]
    controls = slice(len(layers), len(layers) + len([source for source in inputs if source.name in factors]))
    layers += [factors[source.name] for source in inputs if source.name in factors]

    if not layers:
        return {pair: Record(*(np.full(shape, np.nan) for shape in work.shapes("cka", pair))) for pair in pairs}
    wholes = {pair.a.name for pair in pairs if pair.a is pair.b}
    own = {name: Block(s, s, (_range(s), _range(s)), whole=name in wholes) for name, s in slices.items()}
    with_controls = {name: Block(s, controls) for name, s in slices.items()} if work.controls else {}
    of_controls = Block(controls, controls)
    between = {
        pair: Block(slices[pair.a.name], slices[pair.b.name], _matched(pair, slices, defined))
        for pair in pairs
        if pair.a is not pair.b
    }
    blocks = [*own.values(), *with_controls.values(), *([of_controls] if work.controls else []), *between.values()]
    sweep = ModelPairs(layers, blocks, work.dtype)
    sweep.run_blocks(step)

    projection = _Inputs(of_controls, work) if work.controls else None
    energies = {
        name: _Model(own[name], with_controls.get(name), sweep.noise[slices[name]], projection, work) for name in slices
    }
    return {pair: _record(pair, between.get(pair, own[pair.a.name]), energies, defined, work) for pair in pairs}


def _range(s: slice) -> Int64[np.ndarray, " d"]:
    return np.arange(s.start, s.stop)


def _matched(
    pair: Pair, slices: Mapping[str, slice], defined: Mapping[str, Int64[np.ndarray, " d"]]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Return the positions, among all layers of a batch, of the matching layers that both have a Gram matrix."""
    places = []
    for point in (pair.a, pair.b):
        place = {k: slices[point.name].start + i for i, k in enumerate(defined[point.name].tolist())}
        places.append([place.get(k, -1) for k in point.matched.tolist()])
    both = np.array(places).T
    both = both[(both >= 0).all(1)]
    return both[:, 0], both[:, 1]


def _unit_sums(of_samples: Float64[np.ndarray, "n ..."], groups: Groups | None) -> Float64[np.ndarray, "units ..."]:
    """Return the sums D of every unit that is left out: a sample, or a group of samples."""
    if groups is None:
        return of_samples
    sums = np.zeros((groups.count, *of_samples.shape[1:]))
    np.add.at(sums, groups.numbers.numpy(), of_samples)
    return sums


def _factor(work: Work) -> float:
    """Return c: a sum without a unit is <A, B> - c D, up to a factor that all sums have in common.

    Without a single sample c = 2 (n - 2) / (n - 3), exactly (`repsim.engine.jackknife`). Without a group of samples it
    is 2, up to a share of D of the size of the group divided by n.
    """
    return 2 * (work.n - 2) / (work.n - 3) if work.groups is None else 2.0


class _Inputs:
    """Inner products of the controls, of all samples and without each unit, ready to be solved."""

    def __init__(self, block: Block, work: Work) -> None:
        left_out = block.products - _factor(work) * _unit_sums(block.of_samples, work.groups)
        self.all = np.concatenate([block.products[None], left_out])

    def weights(self, products: Float64[np.ndarray, "runs d Z"]) -> Float64[np.ndarray, "runs Z d"]:
        """Return the weights of the controls in the projection of each layer on them."""
        try:
            return np.linalg.solve(self.all, products.swapaxes(1, 2))
        except np.linalg.LinAlgError:  # with very few samples the controls may span one another
            return np.full(products.swapaxes(1, 2).shape, np.nan)


class _Model:
    """Energies of the layers of a model, raw and given the input, with all samples first and then without each unit."""

    def __init__(
        self,
        own: Block,
        with_controls: Block | None,
        noise: Float64[np.ndarray, " d"],
        inputs: _Inputs | None,
        work: Work,
    ) -> None:
        total = own.matched_products()
        squares = np.concatenate([total[None], total - _factor(work) * _unit_sums(own.of_samples, work.groups)])
        raw = np.where(squares > noise, squares, np.nan)
        self.energies = [raw]
        if with_controls is None or inputs is None:
            return
        left_out = with_controls.products - _factor(work) * _unit_sums(with_controls.of_samples, work.groups)
        self.products = np.concatenate([with_controls.products[None], left_out])
        self.weights = inputs.weights(self.products)
        rest = squares - np.einsum("udz,uzd->ud", self.products, self.weights)
        self.energies.append(np.where(rest > MIN_ENERGY * squares, rest, np.nan))


def _record(
    pair: Pair,
    block: Block,
    models: Mapping[str, _Model],
    defined: Mapping[str, Int64[np.ndarray, " d"]],
    work: Work,
) -> Record:
    a, b = models[pair.a.name], models[pair.b.name]
    shapes = work.shapes("cka", pair)
    values, blocks, left_out = (np.full(shape, np.nan) for shape in shapes[:3])
    own = defined[pair.a.name], defined[pair.b.name]
    of_layers = _matched(pair, {pair.a.name: _at(own[0]), pair.b.name: _at(own[1])}, defined)
    places = np.array([np.isin(m, d) for m, d in zip((pair.a.matched, pair.b.matched), own, strict=True)]).all(0)
    of_samples = block.of_samples[:, of_layers[0]] if pair.a is pair.b else block.of_samples
    total = of_samples.sum(0)
    sums = np.concatenate([total[None], total - _factor(work) * _unit_sums(of_samples, work.groups)])
    for kind in range(work.kinds):
        matched, whole = sums, block.products
        if kind:
            matched = sums - np.einsum("umz,uzm->um", a.products[:, of_layers[0]], b.weights[:, :, of_layers[1]])
            whole = block.products - a.products[0] @ b.weights[0]
        similarities = matched / np.sqrt(a.energies[kind][:, of_layers[0]] * b.energies[kind][:, of_layers[1]])
        values[kind, places], left_out[kind][:, places] = similarities[0], similarities[1:]
        norms = np.sqrt(a.energies[kind][0][:, None] * b.energies[kind][0])
        blocks[kind][np.ix_(*own)] = whole / norms
    units = work.units
    chance = np.stack([np.zeros(work.layers), np.full(work.layers, _UNRELATED_SD * np.sqrt(2 / (units * (units - 3))))])
    return Record(values, blocks, left_out, chance)


def _at(layers: Int64[np.ndarray, " d"]) -> slice:
    return slice(0, len(layers))
