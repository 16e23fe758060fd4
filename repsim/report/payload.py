"""Convert studies, comparisons or a series to the JSON value that a page shows.

Python (`repsim.report.parts`, `repsim.report.series_part`) chooses the contents, their order, labels and colour scales;
the scripts in this folder only draw them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from repsim.errors import InvalidInputError, RepsimError, SampleMismatchError, StoreError, reason
from repsim.report.packing import LAYERS
from repsim.report.parts import is_study, of_comparison, of_study
from repsim.report.series_part import is_series, of_series, title_of
from repsim.results import schema
from repsim.study import formatting


def payload(results: Sequence[xr.Dataset]) -> dict[str, Any]:
    """Return the contents of a page as a value that JSON can represent.

    Parameters
    ----------
    results : sequence of Dataset
        Studies of `repsim.universality` of the same models under different readouts, results of `repsim.compare`, or
        one series of `repsim.series`.

    Returns
    -------
    dict
        ``title`` and ``parts``, one for every readout or for the series, with all labels and the packed numbers.

    Raises
    ------
    InvalidInputError
        If there is no result or no measure, if the models differ, if two results have the same readout, or if there is
        a series beside other results.
    SampleMismatchError
        If the samples differ.
    StoreError
        If a part of a study or result is missing or invalid.

    Examples
    --------
    >>> result = xr.Dataset(
    ...     {"cka": (LAYERS, [[0.5]], {"label": "CKA"})},
    ...     coords={"layer_a": ["conv1"], "layer_b": ["blocks.0"], "model_a": ("layer_a", ["r"]),
    ...             "model_b": ("layer_b", ["v"]), "n_samples": 30, "data": "digits"},
    ... )
    >>> page = payload([result])
    >>> page["title"], page["parts"][0]["sides"]["a"]["layers"]
    ('r and v', ['conv1'])
    """
    if not results:
        raise InvalidInputError("there is nothing to report: pass at least one study or result")
    if any(is_series(result) for result in results):
        if len(results) > 1:
            raise InvalidInputError("one page shows one series and nothing else; make a page of each file")
        return {"title": title_of(results[0]), "parts": _read(results[0])}
    parts = [part for result in results for part in _read(result)]
    _check(results, parts)
    return {"title": _title(parts[0]), "parts": parts}


def _check(results: Sequence[xr.Dataset], parts: Sequence[Mapping[str, Any]]) -> None:
    first = parts[0]
    for result, part in ((results[0], first), *zip(results[1:], parts[1:], strict=False)):
        if is_study(result) != (first["kind"] == "study"):
            raise InvalidInputError("one page cannot show a study and a comparison; make a page of each")
        for side in "ab":
            expected, models = (list(dict.fromkeys(one["sides"][side]["models"])) for one in (first, part))
            if models != expected:
                raise InvalidInputError(
                    f"one page shows the same models under one readout or several: the first file has "
                    f"{formatting.listed(expected)}, another one {formatting.listed(models)}; make a page of each"
                )
        if result.attrs.get("samples_fingerprint") != results[0].attrs.get("samples_fingerprint"):
            raise SampleMismatchError("these files have different samples; one page needs the same for all readouts")
    readouts = [part["readout"] for part in parts]
    twice = sorted({readout for readout in readouts if readouts.count(readout) > 1})
    if twice:
        raise InvalidInputError(
            f"several of these files have the readout {formatting.listed(twice)}; give one file per readout"
        )


def _title(part: Mapping[str, Any]) -> str:
    a, b = (list(dict.fromkeys(part["sides"][side]["models"])) for side in "ab")
    if part["kind"] == "study":
        families = list(dict.fromkeys(part["coords"]["family"]))
        if len(a) == 1:
            return f"One network: {a[0]}"
        return f"How alike are {len(a)} networks of {formatting.listed(families)}?"
    return " and ".join(formatting.listed(names) for names in ([a] if a == b else [a, b]))


def _read(result: xr.Dataset) -> list[dict[str, Any]]:
    try:
        return list(_parts(result))
    except RepsimError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # written by another program
        kind = "study" if is_study(result) else "series" if is_series(result) else "result"
        name = Path(result.encoding.get("source", f"this {kind}")).name
        missing = schema.problem(result) if isinstance(error, KeyError) else None  # xarray's text lists all variables
        cause = missing or reason(error)
        raise StoreError(f"{name} is damaged, or not a complete {kind}: {cause}; make it again") from error


def _parts(result: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Yield one part for every readout."""
    if is_study(result) or is_series(result):
        yield (of_study if is_study(result) else of_series)(result)
        return
    variables = [str(name) for name, one in result.data_vars.items() if set(one.dims) == set(LAYERS)]
    if not variables:
        raise InvalidInputError("there is nothing to report: no measure with dims (layer_a, layer_b) in this result")
    readouts = dict.fromkeys(str(result[name].attrs.get("readout", "")) for name in variables)
    for readout in readouts:
        names = [name for name in variables if str(result[name].attrs.get("readout", "")) == readout]
        yield of_comparison(result, names, readout)
