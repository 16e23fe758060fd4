"""Build the tables of pairs of families for the data set of a study: effects of training, controls, tests, ceilings."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim.engine.uncertainty import half_samples, jackknife
from repsim.results.variables import CONTROL_PAIRS
from repsim.study.claim_parts import FamilyPair, parts_of
from repsim.study.claims import CLAIMED, Case, Part, decide
from repsim.study.controls import has_input, unjudged_classes
from repsim.study.dataset_map import left_out_between_models, values_between_models
from repsim.study.design import Design, Pair
from repsim.study.inference import Inference
from repsim.study.other_measures import MeasureResult
from repsim.study.partial_cka import ceiling

_ENDS = ("", "_low", "_high")
_OF_MEASURES = ("trained_value", *(f"effect{end}" for end in _ENDS))
_OF_KERNELS = (
    "trained_energy", *(f"effect_energy{end}" for end in _ENDS), "effect_network_low", "effect_network_high",
    "effect_energy_network_low", "effect_energy_network_high", "p_samples", "p_exchange",
)  # fmt: skip


def family_pairs(inference: Inference) -> list[FamilyPair]:
    """Return all pairs of families of trained models."""
    design = inference.design
    pairs = []
    for a, b in combinations(dict.fromkeys(member.family for member in design.trained), 2):
        sides = ([member for member in design.trained if member.family == family] for family in (a, b))
        one, other = sides
        of_families = [Pair(x, y) for x in one for y in other]
        counted = tuple(pair for pair in of_families if inference.has_index(pair) and inference.is_controlled(pair))
        lacking = dict.fromkeys(m.architecture for m in (*one, *other) if not design.twins_of(m))
        pairs.append(FamilyPair(a, b, counted, tuple(lacking)))
    return pairs


def pairs_of_families(inference: Inference) -> xr.Dataset:
    """Compute the effect of training on the similarity of two families, under every measure, and what may be claimed.

    The effect is the mean similarity of trained networks minus that of the strongest control; every control has its own
    interval, and the effect has the smallest lower and the smallest upper end of them.
    """
    pairs = family_pairs(inference)
    parts = [parts_of(inference, families) for families in pairs]
    table = effects_of_families(inference, pairs, parts)
    return table.merge(_claims(inference, pairs, parts, table))


def effects_of_families(
    inference: Inference, pairs: Sequence[FamilyPair], parts: Sequence[Sequence[Part]]
) -> xr.Dataset:
    """Compute the table of effects, from the parts of the claim about each pair of families."""
    titles, kernels = inference.titles, inference.kernels
    of_measures = {name: np.full((len(titles), len(pairs)), np.nan) for name in _OF_MEASURES}
    of_kernels = {name: np.full((len(kernels), len(pairs)), np.nan) for name in _OF_KERNELS}
    control_value = np.full((len(titles), len(pairs), len(CONTROL_PAIRS)), np.nan)
    control_energy = np.full((len(kernels), len(pairs), len(CONTROL_PAIRS)), np.nan)
    against = np.full((len(titles), len(pairs)), "", dtype=object)
    least = np.full(len(pairs), np.nan)
    for f, families in enumerate(pairs):
        if not families.counted:
            continue
        for m, title in enumerate(titles):
            if title in kernels:
                row, levels, in_energy = _row_of_kernel(inference, kernels[title], families, parts[f])
                k = list(kernels).index(title)
                for name in _OF_KERNELS:
                    of_kernels[name][k, f] = row.get(name, np.nan)
                control_energy[k, f] = in_energy
                least[f] = row["p_exchange_least"]
            elif title in inference.conditions:  # given untrained twins there are no controls
                continue
            else:
                other = inference.evidence.measures[m - len(inference.conditions)]
                row, levels = _row_of_measure(inference, other, families.counted)
            for name in _OF_MEASURES:
                of_measures[name][m, f] = row[name]
            control_value[m, f] = levels
            against[m, f] = "" if np.isnan(levels).all() else CONTROL_PAIRS[int(np.nanargmax(levels))]
    dims = ("families",)
    return xr.Dataset(
        {name: (("measure", *dims), values) for name, values in of_measures.items()}
        | {name: (("kernel", *dims), values) for name, values in of_kernels.items()}
        | {
            "control_value": (("measure", *dims, "control_pair"), control_value),
            "control_energy": (("kernel", *dims, "control_pair"), control_energy),
            "effect_against": (("measure", *dims), against.astype(str)),
            "p_exchange_least": (dims, least),
        },
        coords={
            "measure": titles,
            "kernel": list(kernels),
            "families": [families.name for families in pairs],
            "family_a": (dims, [families.a for families in pairs]),
            "family_b": (dims, [families.b for families in pairs]),
            "control_pair": list(CONTROL_PAIRS),
        },
    )


def _row_of_kernel(
    inference: Inference, kind: str, families: FamilyPair, parts: Sequence[Part]
) -> tuple[dict[str, float], Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Return the columns of a kind of debiased CKA, and the level of every control, plain and in units of energy.

    The p-values and the ends of intervals over networks are the least favourable ones over pairs of architectures.
    """
    row: dict[str, float] = {}
    levels = np.full((2, len(CONTROL_PAIRS)), np.nan)
    parts = [part for part in parts if part.of == "architectures" and part.kind == kind]
    for in_energy in (False, True) if kind in inference.indices.energies else (False,):
        what, suffix = ("energy", "_energy") if in_energy else ("index", "")
        by_control, excess = inference.effects(kind, families.counted, in_energy=in_energy)
        levels[int(in_energy)] = [by_control[name] for name in CONTROL_PAIRS]
        trained = sum(w * inference.theta[k] for k, w in inference.mean_of(kind, families.counted, what).items())
        row["trained_energy" if in_energy else "trained_value"] = float(trained)
        for end, name in zip(_ENDS, ("value", "low", "high"), strict=True):
            row[f"effect{suffix}{end}"] = float(np.min([getattr(estimate, name) for estimate in excess.values()]))
        for end in ("network_low", "network_high"):
            ends = [getattr(part, end) for part in parts if part.in_energy == in_energy]
            row[f"effect{suffix}_{end}"] = float(np.min(ends))
    for name in ("p_samples", "p_exchange", "p_exchange_least"):
        row[name] = float(np.max([getattr(part, name) for part in parts]))
    return row, *levels


def _row_of_measure(
    inference: Inference, result: MeasureResult, pairs: Sequence[Pair]
) -> tuple[dict[str, float], Float64[np.ndarray, " 3"]]:
    """Return the columns of a measure other than debiased CKA, and the level of every control."""

    def of_controls(values: Mapping[str, Float64[np.ndarray, "..."]], name: str) -> Float64[np.ndarray, "..."]:
        return np.asarray(
            np.mean([result.mean_index(values, inference.controls(pair)[name]) for pair in pairs], axis=0)
        )

    trained = float(result.mean_index(result.values, pairs))
    levels = np.array([float(of_controls(result.values, name)) for name in CONTROL_PAIRS])
    row = {"trained_value": trained, "effect": trained - float(np.max(levels))}
    row |= {"effect_low": np.nan, "effect_high": np.nan}
    if result.halves:
        halves = result.mean_index(result.halves, pairs)
        intervals = [
            half_samples(trained - level, halves - of_controls(result.halves, name), inference.design.n)
            for name, level in zip(CONTROL_PAIRS, levels, strict=True)
        ]
        row["effect_low"] = float(np.min([interval.low for interval in intervals]))
        row["effect_high"] = float(np.min([interval.high for interval in intervals]))
    return row, levels


def cases_of(
    inference: Inference, pairs: Sequence[FamilyPair], parts: Sequence[Sequence[Part]], table: xr.Dataset
) -> list[Case]:
    """Return what the decision about each pair of families depends on."""
    input_known = "input" in inference.indices.kernels
    others = [result.metric.spec for result in inference.evidence.measures]
    cases = []
    for f, families in enumerate(pairs):
        of_pair = table.isel(families=f)
        left = {
            family: float(np.mean([
                inference.theta[inference.indices.column_of["left", "input", member.name]]
                for member in inference.indices.members if member.trained and member.family == family
            ]))
            for family in (families.a, families.b)
        } if input_known else {}  # fmt: skip
        cases.append(
            Case(
                families=(families.a, families.b),
                without_twins=families.without_twins if not families.counted else (),
                partly_without=families.without_twins if families.counted else (),
                parts=[part for part in parts[f] if part.kind in CLAIMED],
                classes_unknown=unjudged_classes(inference.design),
                without_pixels=tuple(
                    member.name for member in inference.design.trained
                    if member.family in {families.a, families.b} and not has_input(member.store)
                ),
                common_twins=tuple(
                    twin.name for twin in inference.design.untrained
                    if {families.a, families.b} <= {m.family for m in inference.design.trained
                                                    if m.architecture == twin.architecture}
                ),
                energy_left=left,
                contradicting=tuple(
                    name for name in others if float(of_pair["effect_high"].sel(measure=name)) < 0
                ),
            )
        )  # fmt: skip
    return cases


def _claims(
    inference: Inference, pairs: Sequence[FamilyPair], parts: Sequence[Sequence[Part]], table: xr.Dataset
) -> xr.Dataset:
    """Return the level at which something learned is shared by each pair of families, and why it is no higher."""
    cases = cases_of(inference, pairs, parts, table)
    decisions = decide(cases, dependent=inference.evidence.has_undeclared_groups)
    return xr.Dataset(
        {
            "claim_level": ("families", np.array([decision.level for decision in decisions], dtype=object).astype(str)),
            "claim_reason": (
                "families", np.array([decision.reason for decision in decisions], dtype=object).astype(str)
            ),
            "p_networks": ("families", np.array([decision.p_networks for decision in decisions], np.float64)),
            "p_architectures": (
                "families", np.array([decision.p_architectures for decision in decisions], np.float64)
            ),
        }
    )  # fmt: skip


def ceilings(inference: Inference) -> xr.Dataset:
    """Compute similarities within and across families, and their ratio to the ceiling."""
    families = [member.family for member in inference.design.trained]
    names = list(dict.fromkeys(families))
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    shape = len(inference.kernels), len(pairs)
    table = {name: np.full(shape, np.nan) for name in ("across", "ceiling", "ratio", "ratio_low", "ratio_high")}
    within = {
        name: np.full((len(inference.kernels), len(names)), np.nan) for name in ("within", "within_low", "within_high")
    }
    for m, kind in enumerate(inference.kernels.values()):
        C = values_between_models(inference, kind, inference.theta.__getitem__)
        estimate = ceiling(C, families)
        replicates = [ceiling(without, families) for without in left_out_between_models(inference, kind)]
        within_left = np.concatenate([one.within for one in replicates])
        ratios_left = np.concatenate([one.pairs for one in replicates])
        for f in range(len(names)):
            interval = jackknife(estimate.within[f], within_left[:, f])
            within["within"][m, f] = estimate.within[f]
            within["within_low"][m, f], within["within_high"][m, f] = interval.low, interval.high
        for k, (i, j) in enumerate(pairs):
            mask = np.array([[{a, b} == {names[i], names[j]} for b in families] for a in families])
            table["across"][m, k] = C[mask].mean()
            if within["within_low"][m, i] > 0 and within["within_low"][m, j] > 0:
                table["ceiling"][m, k] = np.sqrt(estimate.within[i] * estimate.within[j])
                interval = jackknife(estimate.pairs[i, j], ratios_left[:, i, j])
                table["ratio"][m, k] = estimate.pairs[i, j]
                table["ratio_low"][m, k], table["ratio_high"][m, k] = interval.low, interval.high
    return xr.Dataset(
        {name: (("kernel", "families"), values) for name, values in table.items()}
        | {name: (("kernel", "one_family"), values) for name, values in within.items()},
        coords={
            "families": [f"{names[i]} x {names[j]}" for i, j in pairs],
            "one_family": names,
            "ceiling_of": ("one_family", [_ceiling_origin(inference.design, name) for name in names]),
        },
    )


def _ceiling_origin(design: Design, family: str) -> str:
    """Return what the members of a family differ in, which is what sets its ceiling."""
    members = [member for member in design.trained if member.family == family]
    if len(members) < 2:
        return "one model, no ceiling"
    if len({member.architecture for member in members}) > 1:
        return "other architectures of the family"
    return "other seeds" if all(member.seed is not None for member in members) else "other recipes of one architecture"
