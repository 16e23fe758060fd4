"""Define the variables, coordinates and attributes of results and studies: names, dimensions, types and meanings.

These definitions are written into files as descriptions, make the tables of docs/result-format.md and
docs/study-format.md, and are what `repsim.results.schema` checks. They never state that something is shared by all
families; only the sentences of `repsim.study.words` may, if the values support it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import xarray as xr

CONTROL_PAIRS = ("both untrained", "first trained", "second trained")
"""Controls of a pair of trained models: which of its two models are trained."""
_ENDS = {"low": "lower end of the 95 % interval", "high": "upper end of the 95 % interval"}


GIVEN_UNTRAINED = "cka given untrained"
"""Name of debiased CKA given untrained twins, which is a measure of a study and none of its kernels."""


@dataclass(frozen=True)
class Place:
    """Entries at which a variable may have a value."""

    words: str
    """Name of these entries, in the plural."""
    holds: Callable[[xr.Dataset], xr.DataArray]
    """Function that returns for every entry whether it is one of them."""


def _is_debiased(study: xr.Dataset) -> xr.DataArray:
    return study["measure"].isin([*study["kernel"].values.tolist(), GIVEN_UNTRAINED])


DEBIASED = Place("those of debiased CKA", _is_debiased)
PLAIN = Place("those of plain debiased CKA", lambda study: study["measure"] == "cka")
COMPARED = Place(
    "those of debiased CKA, or of layers of two models",
    lambda study: _is_debiased(study) | (study["model_a"] != study["model_b"]),
)
"""Layers of one model are compared by debiased CKA only."""
TWO_NETWORKS = Place("those of two networks", lambda study: study["network"] != study["other_network"])


@dataclass(frozen=True)
class Entry:
    """Variables of a study or a series that share dimensions, type and meaning."""

    names: Mapping[str, str]
    """Name of a variable -> long name."""
    dims: str
    """Dimensions, separated by commas."""
    meaning: str
    """Description of the variables, written into files."""
    kind: str = "number"
    """``number`` (float64), ``whole`` (integers), or ``text``."""
    least: float = -math.inf
    """Smallest allowed value."""
    most: float = math.inf
    """Largest allowed value."""
    needs: tuple[str, ...] = ()
    """Variables that have a value wherever these variables have one. They may have fewer or more dimensions."""
    only_at: tuple[Place, ...] = ()
    """Entries outside of which the variables have no value."""
    symmetric: bool = False
    """Whether the variables are equal when their last two dimensions are exchanged. A measure that is not symmetric has
    no value below the diagonal."""
    only: tuple[str, ...] = ()
    """Allowed texts; any text if empty."""
    pairs_only: bool = False
    """Whether the variables are missing in a study of one model."""
    required: bool = True
    """Whether the variables have to exist."""

    @property
    def values(self) -> str:
        """Type and range in words."""
        return _in_words(self.kind, self.least, self.most, self.only)


@dataclass(frozen=True)
class Field:
    """Coordinate or attribute of a result, a study or a series."""

    meaning: str
    """Description; for coordinates of a study or a series the long name in files."""
    kind: str = "text"
    """``text``, ``number``, ``whole``, ``range``, ``axis`` (numbers or text), or JSON: ``texts``, ``stores``,
    ``object``."""
    dim: str = ""
    """Dimensions of a coordinate, separated by commas; empty for a single value."""
    least: float = -math.inf
    """Smallest allowed value."""
    most: float = math.inf
    """Largest allowed value."""
    only: tuple[str, ...] = ()
    """Allowed texts; any text if empty."""
    required: bool = True
    """Whether it has to exist."""
    unique: bool = False
    """Whether no two values may be equal."""

    @property
    def values(self) -> str:
        """Type and range in words."""
        words = _in_words(self.kind, self.least, self.most, self.only) + (", each once" if self.unique else "")
        return words if self.required else f"{words}; may be missing"


def _in_words(kind: str, least: float, most: float, only: tuple[str, ...]) -> str:
    words = {
        "number": "number", "whole": "integer", "text": "text", "range": "two numbers", "texts": "JSON list of texts",
        "stores": "JSON list of objects", "object": "JSON object", "axis": "numbers or text",
    }[kind]  # fmt: skip
    if only:
        return f"{words}: {', '.join(f'`{value}`' for value in only if value)}{', or empty' if '' in only else ''}"
    if math.isfinite(least) and math.isfinite(most):
        return f"{words}, {least:g} to {most:g}"
    return f"{words}, {least:g} or more" if math.isfinite(least) else words


def with_ends(**names: str) -> dict[str, str]:
    """Return variables and the two ends of their intervals, with long names."""
    return {
        f"{name}{end and '_' + end}": f"{long}{end and ', ' + _ENDS[end]}"
        for name, long in names.items()
        for end in ("", *_ENDS)
    }


_LAYERS = "measure, layer_a, layer_b"
_PAIRS = "measure, pair"

AXIS = "axis_"
"""Beginning of the names of coordinates that hold the axes of models."""
CHANCE = ".chance"
"""End of the names of coordinates that hold the chance levels of a variable of a result."""
ENDS = (".low", ".high")
"""Ends of the names of coordinates that hold the intervals of a variable of a result."""
VARIABLES = (
    Entry(
        {"value": "similarity", "low": f"similarity, {_ENDS['low']}", "high": f"similarity, {_ENDS['high']}"},
        _LAYERS,
        "similarity of two layers, and its 95 % jackknife interval (debiased CKA, plain and partial); of an asymmetric "
        "measure only the first model of a pair by the second",
        needs=("value",),
        only_at=(COMPARED,),
        symmetric=True,
    ),
    Entry(
        {"chance": "similarity by chance, mean"},
        _LAYERS,
        "mean over permutations of the samples, in closed form where there is one",
        only_at=(COMPARED,),
        symmetric=True,
    ),
    Entry(
        {"chance_sd": "similarity by chance, standard deviation"},
        _LAYERS,
        "standard deviation over permutations of the samples, in closed form where there is one",
        least=0,
        needs=("chance",),
        only_at=(COMPARED,),
        symmetric=True,
    ),
    Entry(
        {"z": "standard deviations above chance"},
        _LAYERS,
        "(value - chance) / chance_sd",
        needs=("value", "chance", "chance_sd"),
        symmetric=True,
    ),
    Entry(
        {"p": "p-value of the similarity"},
        _LAYERS,
        "Pearson III, one-sided, of plain debiased CKA; not corrected for the number of pairs of layers",
        least=0,
        most=1,
        needs=("value",),
        only_at=(PLAIN,),
    ),
    Entry(
        with_ends(index="mean similarity of best-matching layers"),
        _PAIRS,
        "mean along the best order-preserving match of layers, both directions (MBM), match and similarity from all "
        "samples; of debiased CKA with a 95 % interval only where the match adds no bias to speak of",
        needs=("index",),
    ),
    Entry(
        with_ends(split_half="mean similarity of matching layers, split half"),
        _PAIRS,
        "the match found on one half of the samples, measured on the other, mean over random splits; with its 95 % "
        "interval",
        needs=("split_half",),
        only_at=(DEBIASED,),
    ),
    Entry(
        with_ends(energy="mean similarity of matching layers in units of energy"),
        _PAIRS,
        "split_half not divided by the norms of what the controls leave: a share of the energy of the layers",
        needs=("energy",),
        only_at=(DEBIASED,),
    ),
    Entry({"largest": "largest similarity"}, _PAIRS, "the largest similarity of any two layers"),
    Entry(
        {"p_index": "p-value of the index", "p_largest": "p-value of the largest similarity"},
        _PAIRS,
        "from permutations shared by all layers",
        least=0,
        most=1,
    ),
    Entry(
        {
            "p_index_holm": "p-value of the index, Holm's correction",
            "p_index_bh": "p-value of the index, Benjamini and Hochberg's correction",
        },
        _PAIRS,
        "corrected for the number of pairs of models (Holm; Benjamini-Hochberg)",
        least=0,
        most=1,
        needs=("p_index",),
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
    Entry(
        {"permuted": "permutations"},
        _PAIRS,
        "how many permutations there were",
        least=0,
    ),
    Entry(
        {
            "p_index_within_classes": "p-value of the index, permuted within classes",
            "p_largest_within_classes": "p-value of the largest similarity, permuted within classes",
        },
        _PAIRS,
        "p-values with permutations inside classes: similarity beyond class membership",
        least=0,
        most=1,
        only_at=(DEBIASED,),
    ),
    Entry(
        {"calibrated_index_within_classes": "calibrated index, permuted within classes"},
        _PAIRS,
        "the calibrated index with permutations inside classes",
        needs=("p_index_within_classes",),
        only_at=(DEBIASED,),
    ),
    Entry(
        {"control": "value of the strongest control"},
        _PAIRS,
        "split_half (of other measures index) of the strongest control of the pair: both networks untrained, or one of "
        "them; only where all three exist",
    ),
    Entry(
        {"control_name": "the strongest control"},
        _PAIRS,
        "which control that is",
        kind="text",
        only=(*CONTROL_PAIRS, ""),
    ),
    Entry(
        with_ends(learned="learned effect"),
        _PAIRS,
        "split_half (of other measures index) minus control; the smallest ends of the joint 95 % intervals over all "
        "three controls",
        needs=("index", "control"),
    ),
    Entry(
        {"match": "matching layer"},
        f"{_PAIRS}, direction, position",
        "for every layer of a the layer of b, and the other way round, counted from 0; -1 for none",
        kind="whole",
        least=-1,
    ),
    Entry(
        {"warp": "shift in relative depth"},
        _PAIRS,
        "how much deeper in b the layers of a find their match, in relative depth",
    ),
    Entry(
        with_ends(index_mean="mean similarity"),
        "kernel, kind_of_pair",
        "mean of split_half over pairs",
        needs=("index_mean",),
    ),
    Entry(
        with_ends(
            trained_mean="mean similarity of trained pairs with controls",
            control_mean="mean of the strongest control",
            learned_mean="mean learned effect",
        ),
        "kernel, kind_of_pair",
        "means over the pairs that have all of their controls, with joint intervals",
    ),
    Entry(
        {"pairs_counted": "pairs with controls"},
        "kind_of_pair",
        "number of pairs with all of their controls",
        kind="whole",
        least=0,
    ),
    Entry(
        {"trained_value": "similarity of trained networks"},
        "measure, families",
        "mean over pairs of trained networks of two families that have all of their controls",
    ),
    Entry(
        {"control_value": "similarity of a control"},
        "measure, families, control_pair",
        "the same with untrained networks in place of both, of the second family's, or of the first's",
    ),
    Entry(
        with_ends(effect="effect of training"),
        "measure, families",
        "trained_value minus the largest control_value; the smallest ends of the joint 95 % intervals over samples of "
        "all three controls",
        needs=("effect", "trained_value", "control_value"),
    ),
    Entry(
        {"effect_against": "strongest control"},
        "measure, families",
        "which control is the largest",
        kind="text",
        only=(*CONTROL_PAIRS, ""),
    ),
    Entry(
        {"trained_energy": "similarity of trained networks in units of energy"},
        "kernel, families",
        "trained_value in units of energy",
    ),
    Entry(
        {"control_energy": "similarity of a control in units of energy"},
        "kernel, families, control_pair",
        "control_value in units of energy",
    ),
    Entry(
        with_ends(effect_energy="effect of training in units of energy"),
        "kernel, families",
        "effect in units of energy",
        needs=("effect_energy", "trained_energy", "control_energy"),
    ),
    Entry(
        {
            f"effect{unit}_network_{end}": f"effect of training{text}, over networks and samples, {_ENDS[end]}"
            for unit, text in (("", ""), ("_energy", " in units of energy"))
            for end in ("low", "high")
        },
        "kernel, families",
        "smallest ends of the 95 % intervals over networks and samples, over all pairs of architectures; NaN if an "
        "architecture has a single trained or untrained network",
    ),
    Entry(
        {"p_samples": "p-value over samples"},
        "kernel, families",
        "largest one-sided p-value of the effect against each control, plain and in units of energy, with the standard "
        "errors over samples",
        least=0,
        most=1,
    ),
    Entry(
        {"p_exchange": "p-value over networks"},
        "kernel, families",
        "exact test that exchanges trained and untrained networks of two architectures; the largest one over pairs of "
        "architectures, plain and in units of energy",
        least=0,
        most=1,
    ),
    Entry(
        {"p_exchange_least": "smallest p-value over networks"},
        "families",
        "the smallest p_exchange that is possible with these numbers of networks",
        least=0,
        most=1,
    ),
    Entry(
        {"claim_level": "level of the claim"},
        "families",
        "networks: the trained networks of the study are more alike than each control, on samples like these; "
        "architectures: training makes networks of these architectures alike; or empty",
        kind="text",
        only=("", "networks", "architectures"),
    ),
    Entry(
        {"claim_reason": "why no more is claimed"}, "families", "why the level of the claim is no higher", kind="text"
    ),
    Entry(
        {
            "p_networks": "p-value of a claim about the networks",
            "p_architectures": "p-value of a claim about the architectures",
        },
        "families",
        "largest p_samples over pairs of architectures, and largest p over samples, of the exact test over networks "
        "and of the interval over both, given the input and given input and labels; adjusted for the number of pairs "
        "of families (Hommel)",
        least=0,
        most=1,
    ),
    Entry(
        {"network_similarity": "similarity of networks"},
        "kernel, network, other_network",
        "split-half similarity of matching layers of all networks, trained and untrained; NaN of a network with itself",
        only_at=(TWO_NETWORKS,),
        symmetric=True,
    ),
    Entry(
        {"energy_left": "energy that is left"},
        "kernel, network",
        "mean over layers of the share of energy that is left once the controls are projected out",
    ),
    Entry(
        {"effective_dimension": "effective dimension of layers"},
        "network",
        "mean over layers of the participation ratio of the covariance",
    ),
    Entry(
        with_ends(share="share of representational energy"),
        "state, share_of, depth",
        "where the energy of kernels comes from, along matching layers at the relative depths of each network, with "
        "95 % intervals; the four shares sum to 1; without pixels that of "
        "the input is NaN, and part of what all families have",
        needs=("share",),
    ),
    Entry(
        with_ends(mean_share="share of representational energy, mean over depth"),
        "state, share_of",
        "their mean over depth",
        needs=("mean_share", "share"),
    ),
    Entry(
        with_ends(within="similarity within a family"),
        "kernel, one_family",
        "similarity of the members of one family, mean over matching layers",
        needs=("within",),
    ),
    Entry(
        {"across": "similarity across two families", "ceiling": "ceiling of the similarity across two families"}
        | with_ends(ratio="share of the ceiling that is reached"),
        "kernel, families",
        "similarity across two families, the most that their members' own likeness allows, and the ratio (NaN where "
        "the ceiling is not above 0 with its whole interval)",
        needs=("across",),
    ),
    Entry(
        {"model_similarity": "similarity of models"},
        "map, model, other_model",
        "mean over matching layers",
        symmetric=True,
        pairs_only=True,
    ),
    Entry(
        {"map_coordinates": "place on the map"},
        "map, model, axis",
        "classical scaling of 2 (1 - similarity) of models",
        needs=("map_eigenvalues",),
        pairs_only=True,
    ),
    Entry(
        {"map_eigenvalues": "eigenvalue of the map's axis"},
        "map, axis",
        "those of the classical scaling",
        pairs_only=True,
    ),
    Entry(
        {"layer_coordinates": "place on the map of layers"},
        "layer_a, layer_axis",
        "classical scaling of layers (plain CKA), three axes",
        pairs_only=True,
    ),
    Entry(
        with_ends(common_share="share of the first common component"),
        "map",
        "how much of what the models have the first eigenvector of their similarities carries",
        needs=("common_share",),
        pairs_only=True,
    ),
    Entry(
        {"common_share_noise": "share of the first component of unrelated models"},
        "map",
        "95 % point of common_share if the models had nothing in common",
        pairs_only=True,
    ),
    Entry(
        {"cluster": "cluster of models"},
        "map, model",
        "average linkage, as many clusters as the silhouette says, counted from 0",
        kind="whole",
        least=0,
        pairs_only=True,
    ),
    Entry(
        {"silhouette": "mean silhouette width"},
        "map",
        "how distinct the clusters are",
        least=-1,
        most=1,
        pairs_only=True,
    ),
    Entry(
        {"cluster_stability": "adjusted Rand index of clusters"},
        "map",
        "how alike clusters are when stimuli are reweighted, and these",
        most=1,
        pairs_only=True,
    ),
    Entry(
        {"together": "share of draws in one cluster"},
        "map, model, other_model",
        "how often two models are in one cluster when stimuli are reweighted",
        symmetric=True,
        least=0,
        most=1,
        pairs_only=True,
    ),
    Entry(
        {"agreement": "influence on the agreement across families"},
        "kernel, sample",
        "how much each sample adds to the agreement across families (influence values); with groups of samples a part "
        "of what its group adds",
        pairs_only=True,
    ),
    Entry(
        {"agreement_signal": "spread of the influence on agreement"},
        "kernel",
        "variance of the influences, relative to that between unrelated networks",
        pairs_only=True,
    ),
)

OTHER_MODALITY = "other modality"
RELATIONS = (OTHER_MODALITY, "other family", "same family", "same architecture")
"""Relations of the models of a pair, the most distant first. Models of other modalities are also of other families."""
KINDS_OF_PAIRS = (*RELATIONS[1:], OTHER_MODALITY)
"""Relations in the order of `kind_of_pair`, which is also that of their colours: it is equal in all studies."""
ACROSS_FAMILIES = RELATIONS[:2]
"""Relations of models of different families."""

COORDINATES = {
    "measure": Field("measure", dim="measure", unique=True),
    "kernel": Field("kind of debiased CKA", dim="kernel", unique=True),
    "model": Field("trained model", dim="model", unique=True),
    "family": Field("family of the model", dim="model"),
    "architecture": Field("architecture of the model", dim="model"),
    "modality": Field(
        "kind of what the model reads: `image`, `text`, `tensor` or `other`; empty if it is not known",
        dim="model",
        required=False,
    ),
    "axis_NAME": Field(
        "value of the model on the axis NAME, such as `axis_step` ([axes](axes.md)); NaN or empty if it has none",
        "axis",
        dim="model",
        required=False,
    ),
    "other_model": Field("trained model, the second", dim="other_model", unique=True, required=False),
    "sample": Field("sample", dim="sample", unique=True),
    "n_samples": Field("number of samples", "whole", least=1),
    "data": Field("what the samples are"),
    "readout": Field("how a layer becomes one vector"),
    "layer_a": Field("layer", dim="layer_a", unique=True),
    "layer_b": Field("layer, the second", dim="layer_b", unique=True),
    "model_a": Field("model of the layer", dim="layer_a"),
    "model_b": Field("model of the second layer", dim="layer_b"),
    "pair": Field("pair of trained models", dim="pair", unique=True),
    "pair_a": Field("first model of the pair", dim="pair"),
    "pair_b": Field("second model of the pair", dim="pair"),
    "relation": Field("what the models of the pair have in common", dim="pair", only=RELATIONS),
    "direction": Field("from which model layers are matched", dim="direction", unique=True, only=("a to b", "b to a")),
    "kind_of_pair": Field(
        "what the models of a pair have in common; without `other modality` if all read samples of one kind",
        dim="kind_of_pair",
        unique=True,
        only=RELATIONS,
    ),
    "state": Field("whether networks are trained", dim="state", unique=True, only=("trained", "untrained")),
    "share_of": Field("where the energy comes from", dim="share_of", unique=True),
    "depth": Field("relative depth", "number", dim="depth", least=0, most=1, unique=True),
    "families": Field("pair of families", dim="families", unique=True),
    "family_a": Field("first family of the pair", dim="families"),
    "family_b": Field("second family of the pair", dim="families"),
    "control_pair": Field(
        "which networks of the pair are trained", dim="control_pair", unique=True, only=CONTROL_PAIRS
    ),
    "network": Field("trained or untrained network", dim="network", unique=True),
    "other_network": Field("trained or untrained network, the second", dim="other_network", unique=True),
    "network_family": Field("family of the network", dim="network"),
    "network_architecture": Field("architecture of the network", dim="network"),
    "network_state": Field("whether the network is trained", dim="network", only=("trained", "untrained")),
    "one_family": Field("family", dim="one_family", unique=True),
    "ceiling_of": Field("what the members of the family differ in", dim="one_family"),
    "map": Field("measure of the map", dim="map", unique=True, required=False),
}
"""Coordinates of a study; their meaning is their long name in files."""

ORIGIN = {
    "created": Field("time of the computation: ISO 8601, UTC"),
    "repsim_version": Field("version of repsim"),
    "command": Field("the command line; empty if it was computed in Python"),
    "samples_fingerprint": Field("SHA-256 of the sample ids, or of the list of pairs"),
}
"""Attributes of results, studies and series that record where they come from."""

STUDY_ATTRIBUTES = {
    "format": Field("name of the format", only=("repsim-study",)),
    "format_version": Field("version of the format", "whole"),
    **ORIGIN,
    "summary": Field("conclusions, as sentences", "texts"),
    "warnings": Field("limits of the study and cautions, as sentences", "texts"),
    "stores": Field("the compared stores: `model`, `checksum` and `provenance` of each", "stores"),
    "untrained": Field("names of the untrained networks", "texts"),
    "input_controls": Field("kernels that describe the input, and are projected out with it", "texts"),
    "permutations": Field("number of permutations of the samples, a setting", "whole", least=0),
    "draws": Field("number of draws of the bootstrap, a setting", "whole", least=0),
    "seed": Field("random seed of permutations and draws, a setting", "whole"),
    "study_file": Field("text of the [study file](study-file.md), if `repsim run` made the study", required=False),
}
"""Attributes of a study."""

RESULT_COORDINATES = {
    "layer_a": Field(
        "names of the arrays, in depth order: `layer3.5`, or `blocks.3@cls` if a store has several readouts. With "
        "several models `model/layer`, one model after the other; then both sides are the same",
        dim="layer_a",
        unique=True,
    ),
    "model_a": Field("model of each layer", dim="layer_a"),
    "readout_a": Field(
        "readout of each layer; missing if several readouts were selected, because then each variable has its own",
        dim="layer_a",
        required=False,
    ),
    "features_a": Field(
        "number of features, p and q; for `gram:B` and `sketch:M` before the compression (-1 if the store does not "
        "record it). With several readouts `features@mean_a` and so on",
        "whole",
        dim="layer_a",
        least=-1,
        required=False,
    ),
    "axis_NAME_a": Field(
        "value of each layer's model on the axis NAME, such as `axis_step_a` ([axes](axes.md)); NaN or empty if it has "
        "none",
        "axis",
        dim="layer_a",
        required=False,
    ),
    "n_samples": Field("number of samples", "whole", least=1),
    "data": Field("description of the samples"),
}
"""Coordinates of a result; those that end in ``_a`` also exist with ``_b``."""

RESULT_ATTRIBUTES = {
    "format": Field("name of the format", only=("repsim-comparison",)),
    "format_version": Field("version of the format", "whole"),
    **ORIGIN,
    "pairing": Field(
        "how samples were paired; missing if the stores hold the same samples: `by` (`id`, `file` or `list`), `file`, "
        "the number of `pairs`, `sha256` of the list of pairs (JSON), `other_contents` (number of pairs whose two "
        "samples differ, null if unknown), and `left_out`: `model`, `checksum`, `count` and `ids` of each store",
        "object",
        required=False,
    ),
    "readouts": Field("selected readouts; missing if none was selected", "texts", required=False),
    "groups": Field(
        "groups of samples that intervals leave out as wholes: their `count`, the size of the `largest`, and `sha256` "
        "of the numbers of the samples' groups (JSON); missing if every sample is independent. Values with an interval "
        "are then computed from pairs of samples of different groups",
        "object",
        required=False,
    ),
    "left_out": Field(
        "measures of a selected group that are undefined for these layers, need more samples, or take too much "
        "memory, with the reason",
        "texts",
    ),
    "device": Field("device of the computation"),
    "tf32": Field("1 if products were rounded to TensorFloat-32", "whole", least=0, most=1),
    "stores_a": Field(
        "the `model`, `checksum` and `provenance` of each store ([the store format](store-format.md)). The checksum "
        "identifies a store when models are added to the result",
        "stores",
    ),
    "stores_b": Field("the same for the other side", "stores"),
}
"""Attributes of a result."""

METRIC_ATTRIBUTES = {
    "spec": Field("the metric as text, for `repsim.metrics.get`"),
    "label": Field(
        "name of the metric for figures; if all layers are compressed in the same way, it includes the compression, as "
        "in `CKA (linear, debiased, minibatches of 256)`"
    ),
    "readout": Field("readout of the values, if readouts were selected", required=False),
    "sense": Field(
        "`similarity`: larger values mean more similar; `distance`: smaller values", only=("similarity", "distance")
    ),
    "valid_range": Field(
        "smallest and largest possible value of the metric (an estimate from sketches can be outside: "
        "[compressed readouts](compressed-readouts.md))",
        "range",
    ),
    "symmetric": Field("1 if exchanging the two sides does not change the value", "whole", least=0, most=1),
    "formula": Field("formula of the metric"),
    "citation": Field("reference of the metric"),
    "chance": Field(
        "mean value of unrelated layers, whose samples are permuted: `zero`; `known`, in the coordinate `NAME.chance` "
        "(layer_a, layer_b); `unknown`, not computed; `undefined`, the order of samples does not matter. "
        "Missing in files of earlier versions",
        required=False,
        only=("zero", "known", "unknown", "undefined"),
    ),
    "interval": Field(
        "level of the intervals over samples in the coordinates `NAME.low` and `NAME.high` (layer_a, layer_b); missing "
        "if there are none",
        "number",
        least=0,
        most=1,
        required=False,
    ),
    "undefined": Field("reasons for missing values, as sentences; empty if none is missing", "texts"),
    "cautions": Field("values that say little, with the reason", "texts"),
    "remarks": Field(
        "notes on all values, such as the number of samples that are in no block of `gram:B`", "texts", required=False
    ),
}
"""Attributes of a variable of a result."""


def describe(study: xr.Dataset) -> None:
    """Write long names and descriptions into the attributes of all variables and coordinates of a study."""
    describe_as(study, VARIABLES, COORDINATES)


def describe_as(data: xr.Dataset, entries: Iterable[Entry], fields: Mapping[str, Field]) -> None:
    """Write the long names and descriptions of these definitions into the attributes of a data set."""
    for entry in entries:
        for name in entry.names.keys() & data.data_vars.keys():
            data[name].attrs |= {"long_name": entry.names[name], "description": entry.meaning}
    for name in fields.keys() & data.coords.keys():
        data[name].attrs["long_name"] = fields[name].meaning
    for name in filter(lambda name: name.startswith(AXIS), map(str, data.coords)):
        data[name].attrs["long_name"] = f"{name.removeprefix(AXIS)} of the model"


def rows(entries: Iterable[Entry]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each entry, for the page of a format: names, dimensions, values, meaning."""
    for entry in entries:
        values = entry.values if entry.required else f"{entry.values}; may be missing"
        yield ", ".join(f"`{name}`" for name in entry.names), entry.dims, values, entry.meaning


def field_rows(fields: Mapping[str, Field], *, dims: bool = False) -> Iterator[tuple[str, ...]]:
    """Yield a row for each coordinate or attribute, for a page: names, perhaps dimensions, values, meaning."""
    for name, field in fields.items():
        both_sides = fields is RESULT_COORDINATES and field.dim
        names = f"`{name}`, `{name[:-2]}_b`" if both_sides else f"`{name}`"
        dim = "layer" if both_sides else field.dim or "none"
        yield (names, *((dim,) if dims else ()), field.values, field.meaning)
