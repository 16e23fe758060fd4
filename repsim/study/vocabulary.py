"""What every variable and coordinate of a study is called, and what it is: in the file, and in docs/study-format.md.

Nothing here claims that anything is shared by all families: `repsim.study.words` may, where the numbers allow it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import xarray as xr

_ENDS = {"low": "lower end of the 95 % interval", "high": "upper end of the 95 % interval"}


@dataclass(frozen=True)
class Entry:
    """Variables that are explained together."""

    names: Mapping[str, str]
    """Variable -> long name."""
    dims: str
    said: str


def _with_ends(**names: str) -> dict[str, str]:
    """Each with the ends of its interval."""
    return {
        f"{name}{end and '_' + end}": f"{long}{end and ', ' + _ENDS[end]}"
        for name, long in names.items()
        for end in ("", *_ENDS)
    }


_LAYERS = "measure, layer_a, layer_b"
_PAIRS = "measure, pair"

VARIABLES = (
    Entry(
        {"value": "similarity", "low": f"similarity, {_ENDS['low']}", "high": f"similarity, {_ENDS['high']}"},
        _LAYERS,
        "similarity of two layers, and its 95 % jackknife interval (debiased CKA, plain and partial); of an asymmetric "
        "measure only the first model of a pair by the second",
    ),
    Entry(
        {
            "chance": "similarity by chance, mean",
            "chance_sd": "similarity by chance, standard deviation",
            "z": "standard deviations above chance",
        },
        _LAYERS,
        "mean and standard deviation over permutations of the samples, in closed form where there is one; "
        "(value - chance) / chance_sd",
    ),
    Entry(
        {"p": "p-value of the similarity"},
        _LAYERS,
        "Pearson III, one-sided, of plain debiased CKA; not corrected for the number of pairs of layers",
    ),
    Entry(
        _with_ends(index="mean similarity of best-matching layers"),
        _PAIRS,
        "mean along the best order-preserving match of layers, both directions (MBM), with its 95 % interval",
    ),
    Entry(
        {"split_half": "mean similarity of best-matching layers, split half"},
        _PAIRS,
        "the match found on one half of the samples, measured on the other",
    ),
    Entry({"largest": "largest similarity"}, _PAIRS, "the largest similarity of any two layers"),
    Entry(
        {"p_index": "p-value of the index", "p_largest": "p-value of the largest similarity"},
        _PAIRS,
        "from permutations shared by all layers",
    ),
    Entry(
        {
            "p_index_holm": "p-value of the index, Holm's correction",
            "p_index_bh": "p-value of the index, Benjamini and Hochberg's correction",
        },
        _PAIRS,
        "corrected for the number of pairs of models (Holm; Benjamini-Hochberg)",
    ),
    Entry(
        {
            "threshold_index": "95 % point of the permuted index",
            "calibrated_index": "calibrated index",
            "threshold_largest": "95 % point of the permuted largest similarity",
            "calibrated_largest": "calibrated largest similarity",
        },
        _PAIRS,
        "tau, the 95 % point of the permuted values; max(0, (T - tau) / (1 - tau)); of a distance, which is there as "
        "its negative, max(0, 1 - T / tau)",
    ),
    Entry({"permuted": "permutations"}, _PAIRS, "how many permutations there were"),
    Entry(
        {
            "p_index_within_classes": "p-value of the index, permuted within classes",
            "p_largest_within_classes": "p-value of the largest similarity, permuted within classes",
            "calibrated_index_within_classes": "calibrated index, permuted within classes",
        },
        _PAIRS,
        "the same with permutations inside classes: similarity beyond class membership",
    ),
    Entry(
        {"control": "index of the best control", "control_name": "the best control"},
        _PAIRS,
        "the index of the best control: both networks untrained or, of debiased CKA, one of them",
    ),
    Entry(_with_ends(learned="learned effect"), _PAIRS, "index minus control, and its joint 95 % interval"),
    Entry(
        {"match": "matching layer"},
        f"{_PAIRS}, direction, position",
        "for every layer of a the layer of b, and the other way round, counted from 0; -1 for none",
    ),
    Entry(
        {"warp": "shift in relative depth"},
        _PAIRS,
        "how much deeper in b the layers of a find their match, in relative depth",
    ),
    Entry(
        _with_ends(index_mean="mean index", control_mean="mean control", learned_mean="mean learned effect"),
        "kernel, kind_of_pair",
        "means over pairs, with joint intervals",
    ),
    Entry(
        _with_ends(share="share of representational energy"),
        "state, share_of, depth",
        "where the energy of kernels comes from, with 95 % intervals; the four shares sum to 1; without pixels that of "
        "the input is NaN, and part of what all families have",
    ),
    Entry(
        _with_ends(mean_share="share of representational energy, mean over depth"),
        "state, share_of",
        "their mean over depth",
    ),
    Entry(
        _with_ends(within="similarity within a family"),
        "kernel, one_family",
        "similarity of the members of one family, mean over depth",
    ),
    Entry(
        {"across": "similarity across two families", "ceiling": "ceiling of the similarity across two families"}
        | _with_ends(ratio="share of the ceiling that is reached"),
        "kernel, families",
        "similarity across two families, the most that their members' own likeness allows, and the ratio (NaN where "
        "the ceiling is not above 0 with its whole interval)",
    ),
    Entry({"model_similarity": "similarity of models"}, "map, model, other_model", "mean over matched depths"),
    Entry(
        {"map_coordinates": "place on the map"}, "map, model, axis", "classical scaling of 2 (1 - similarity) of models"
    ),
    Entry({"map_eigenvalues": "eigenvalue of the map's axis"}, "map, axis", "those of the classical scaling"),
    Entry(
        {"layer_coordinates": "place on the map of layers"},
        "layer_a, layer_axis",
        "classical scaling of layers (plain CKA), three axes",
    ),
    Entry(
        _with_ends(common_share="share of the first common component"),
        "map",
        "how much of what the models have the first eigenvector of their similarities carries",
    ),
    Entry(
        {"cluster": "cluster of models"},
        "map, model",
        "average linkage, as many clusters as the silhouette says, counted from 0",
    ),
    Entry({"silhouette": "mean silhouette width"}, "map", "how distinct the clusters are"),
    Entry(
        {"cluster_stability": "adjusted Rand index of clusters"},
        "map",
        "how alike clusters are when stimuli are reweighted, and these",
    ),
    Entry(
        {"together": "share of draws in one cluster"},
        "map, model, other_model",
        "how often two models are in one cluster when stimuli are reweighted",
    ),
    Entry(
        {"agreement": "influence on the agreement across families"},
        "kernel, sample",
        "how much each sample adds to the agreement across families (influence values)",
    ),
)

COORDINATES = {
    "measure": "measure",
    "kernel": "kind of debiased CKA",
    "model": "trained model",
    "family": "family of the model",
    "architecture": "architecture of the model",
    "other_model": "trained model, the second",
    "sample": "sample",
    "n_samples": "number of samples",
    "data": "what the samples are",
    "readout": "how a layer becomes one vector",
    "layer_a": "layer",
    "layer_b": "layer, the second",
    "model_a": "model of the layer",
    "model_b": "model of the second layer",
    "pair": "pair of trained models",
    "pair_a": "first model of the pair",
    "pair_b": "second model of the pair",
    "relation": "what the models of the pair have in common",
    "direction": "from which model layers are matched",
    "kind_of_pair": "what the models of a pair have in common",
    "state": "whether networks are trained",
    "share_of": "where the energy comes from",
    "depth": "relative depth",
    "families": "pair of families",
    "one_family": "family",
    "ceiling_of": "what the members of the family differ in",
    "map": "measure of the map",
}


def describe(study: xr.Dataset) -> None:
    """Give every variable and coordinate its names."""
    for entry in VARIABLES:
        for name in entry.names.keys() & study.data_vars.keys():
            study[name].attrs |= {"long_name": entry.names[name], "description": entry.said}
    for name in COORDINATES.keys() & study.coords.keys():
        study[name].attrs["long_name"] = COORDINATES[name]


def rows() -> Iterator[tuple[str, str, str]]:
    """Rows of the table in docs/study-format.md: variables, dimensions, what they are."""
    for entry in VARIABLES:
        yield ", ".join(f"`{name}`" for name in entry.names), entry.dims, entry.said
