"""Define the variables, coordinates and attributes of series: names, dimensions, types and meanings.

These definitions are written into files as descriptions, make the tables of docs/series-format.md, and are what
`repsim.results.schema` checks.
"""

import xarray as xr

from repsim.results.variables import ORIGIN, Entry, Field, Place, describe_as, with_ends

COMPARISONS = REFERENCE, PREVIOUS, OTHER_RUNS = "reference", "previous", "other runs"
"""Networks that a point is compared with: the reference, the point before it, the same point of other runs."""
NETWORK = "network"
"""Entry of `trend_of` for the mean over layers; the others are names of layers."""
AXIS = "axis_"
"""Begin of the names of coordinates that hold further axes of the points, such as ``axis_width``."""
PICTURES = "pictures"
OVER = (PICTURES, "runs")
"""Units over which intervals of trends are taken. Samples are called pictures in files, whatever they are."""


def _other_layers(series: xr.Dataset) -> xr.DataArray:
    exists = (series["layer_name"] != "").rename(own_layer="other_layer")
    return exists.reindex(other_layer=series["other_layer"].values, fill_value=False)


OWN_LAYERS = Place("those of a layer of the point", lambda series: series["layer_name"] != "")
OTHER_LAYERS = Place("those of another layer of the point", _other_layers)


_LAYERS = "measure, comparison, point, layer"
_TRENDS = "measure, comparison, trend_of"

SERIES_VARIABLES = (
    Entry(
        with_ends(similarity="similarity of matching layers"),
        _LAYERS,
        "similarity of a layer of a point and the matching layer of what the point is compared with, and its 95 % "
        "interval over pictures where the measure has one; of `previous` the first point of a run has no value, of "
        "`other runs` it is the mean over the other runs at the same value",
    ),
    Entry(
        with_ends(network="similarity of networks"),
        "measure, comparison, point",
        "mean of the similarity over matching layers, and its 95 % interval over pictures",
    ),
    Entry(
        with_ends(gain="change since the first point"),
        "measure, comparison, point",
        "network minus its value at the first point of the run, and its 95 % interval over pictures",
    ),
    Entry(
        {"threshold": "similarity that unrelated layers reach"},
        _LAYERS,
        "95 % point of the similarity of unrelated layers, or slightly more; NaN where it is not known in closed form",
    ),
    Entry(
        {"calibrated": "calibrated similarity"},
        _LAYERS,
        "max(0, (s - t) / (1 - t)) of the similarity s and the threshold t: 0 for unrelated layers, 1 for equal ones",
        least=0,
        most=1,
        needs=("similarity", "threshold"),
    ),
    Entry(
        {"blocks": "similarity of all pairs of layers"},
        "measure, comparison, point, own_layer, other_layer",
        "every layer of the point by every layer of what it is compared with, counted from 0; NaN beyond the last "
        "layer of a network; of `other runs` the mean over the other runs",
        only_at=(OWN_LAYERS,),
    ),
    Entry(
        {"within": "similarity of the layers of one network"},
        "measure, point, own_layer, other_layer",
        "every layer of the point by every layer of the same network, counted from 0; NaN beyond its last layer",
        only_at=(OWN_LAYERS, OTHER_LAYERS),
    ),
    Entry(
        {"speed": "speed of change"},
        "measure, point, layer",
        "arccos of the similarity to the previous point of the run, in radians, for each unit of the axis; of "
        "debiased CKA only",
        least=0,
    ),
    Entry(
        with_ends(settled="value of the axis at which a layer has settled"),
        "measure, one_run, layer",
        "value of the axis from which on the similarity to the last point of the run stays above the share "
        "`settled_at` of the way from its first value to 1, and its 95 % interval over pictures",
    ),
    Entry(
        with_ends(depth_order="order in which layers settle"),
        "measure, one_run",
        "Kendall's tau of depth and `settled`: 1 if lower layers settle first, -1 if higher ones do; with its 95 % "
        "interval over pictures",
        least=-1,
        most=1,
    ),
    Entry(
        {"trend_tau": "monotone trend"},
        _TRENDS,
        "Kendall's tau of the similarity and the value of the axis: concordant minus discordant pairs of points of a "
        "run, divided by their number; a point that is compared with itself does not count. Of `other runs`, whose "
        "values share pairs of runs, that of their mean at each value",
        least=-1,
        most=1,
    ),
    Entry(
        {"trend_p": "p-value of the trend"},
        _TRENDS,
        "two-sided: if every point is a network of its own, of trend_tau, exact, if all orders of the points of a run "
        "are equally likely; if the points of a run are states of one network, of a mean slope of 0 over runs "
        "(Student's t), NaN with one run",
        least=0,
        most=1,
    ),
    Entry(
        {"trend_slope": "slope of the trend", "trend_exponent": "exponent of the trend"},
        _TRENDS,
        "means over runs. trend_slope: change of the similarity for a factor of 10 of the axis, or on a linear scale "
        "for one unit; trend_exponent: alpha of 1 - similarity ~ value^(-alpha)",
    ),
    Entry(
        {
            f"trend_{name}_{end}": f"{name} of the trend, {end}er end of the 95 % interval".replace("higher", "upper")
            for name in ("slope", "exponent")
            for end in ("low", "high")
        },
        f"{_TRENDS}, over",
        "95 % intervals of trend_slope and trend_exponent: over pictures, for these networks (jackknife), and over "
        "runs (Student's t)",
    ),
    Entry(
        {"every_point": "similarity of all pairs of points"},
        "measure, point, other_point, layer",
        "similarity of matching layers of every two points",
        required=False,
    ),
)
"""Variables of a series."""

SERIES_COORDINATES = {
    "point": Field("network of the series", dim="point", unique=True),
    "value": Field("value of the axis", "number", dim="point"),
    "run": Field("run of the network; empty if the series has one run", dim="point"),
    "layer": Field(
        "layer by which networks are matched; relative depth if they differ in depth", dim="layer", unique=True
    ),
    "depth": Field("relative depth of the layer, from 0 (first) to 1 (last)", "number", dim="layer", least=0, most=1),
    "measure": Field("measure", dim="measure", unique=True),
    "comparison": Field("what each point is compared with", dim="comparison", unique=True, only=COMPARISONS),
    "own_layer": Field("layer of the point, counted from 0", "whole", dim="own_layer", least=0, unique=True),
    "other_layer": Field(
        "layer of the other network, counted from 0", "whole", dim="other_layer", least=0, unique=True
    ),
    "layer_name": Field("name of each layer of each point; empty beyond its last layer", dim="point, own_layer"),
    "one_run": Field("run", dim="one_run", unique=True),
    "trend_of": Field("network (mean over layers), or a layer", dim="trend_of", unique=True),
    "over": Field("what intervals of trends are taken over", dim="over", unique=True, only=OVER),
    "other_point": Field("network of the series, the second", dim="other_point", unique=True, required=False),
    "n_samples": Field("number of samples", "whole", least=1),
    "data": Field("what the samples are"),
}
"""Coordinates of a series; their meaning is their long name in files."""

SERIES_ATTRIBUTES = {
    "format": Field("name of the format", only=("repsim-series",)),
    "format_version": Field("version of the format", "whole"),
    **ORIGIN,
    "summary": Field("conclusions, as sentences", "texts"),
    "warnings": Field("limits of the series and cautions, as sentences", "texts"),
    "stores": Field("the compared stores: `model`, `checksum` and `provenance` of each", "stores"),
    "axis": Field("name of the axis, such as `step`"),
    "reference": Field("what `reference` is: `first`, `last`, or the name of a point or of another network"),
    "scale": Field("scale of the axis for slopes", only=("linear", "log")),
    "points": Field(
        "`states` of one network in each run, or `networks` of their own: what trends are tested against",
        only=("states", "networks"),
    ),
    "run_axis": Field("axis that tells runs apart; empty if the series has one run"),
    "matched_by": Field("how layers match", only=("names", "relative depth")),
    "readout": Field("how a layer becomes one vector"),
    "distances": Field("measures that are distances; their values are negative, so that larger is more alike", "texts"),
    "input_controls": Field("kernels that describe the input, and are projected out with it", "texts"),
    "pairing": Field(
        "how samples were paired; missing if the stores hold the same samples; as in results "
        "([pairing](result-format.md))",
        "object",
        required=False,
    ),
    "seed": Field("random seed of the draws of intervals, a setting", "whole"),
    "settled_at": Field("share of the way at which a layer has settled, a setting", "number", least=0, most=1),
}
"""Attributes of a series."""


def describe_series(series: xr.Dataset) -> None:
    """Write long names and descriptions into the attributes of all variables and coordinates of a series."""
    describe_as(series, SERIES_VARIABLES, SERIES_COORDINATES)
