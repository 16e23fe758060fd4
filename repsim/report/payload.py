"""Makes of studies, or comparisons, everything that a page shows, as one value that JSON can hold.

What is shown, in which order, under which name and on which scale is decided in Python (`repsim.report.parts`); the
scripts beside this file draw it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from repsim.errors import InvalidInputError, RepsimError, SampleMismatchError, StoreError, reason
from repsim.report.packing import LAYERS
from repsim.report.parts import is_study, of_comparison, of_study
from repsim.study import formatting


def payload(results: Sequence[xr.Dataset]) -> dict[str, Any]:
    """Make everything a page shows of studies of the same models under different readouts, or of comparisons.

    Parameters
    ----------
    results
        Studies of `repsim.universality`, or results of `repsim.compare`.

    Returns
    -------
    dict
        ``title`` and ``parts``: one for every readout, with the names of everything and all numbers, packed.

    Raises
    ------
    InvalidInputError
        If there is nothing in them, or if they are of different models, or of one readout twice.
    SampleMismatchError
        If they are of different samples.
    StoreError
        If something that belongs to a study or result is missing, or is not what it should be.

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
        raise InvalidInputError("there is nothing to report: give one study or result at least")
    parts = [part for result in results for part in _read(result)]
    _check(results, parts)
    return {"title": _title(parts[0]), "parts": parts}


def _check(results: Sequence[xr.Dataset], parts: Sequence[Mapping[str, Any]]) -> None:
    first = parts[0]
    for result, part in ((results[0], first), *zip(results[1:], parts[1:], strict=False)):
        if is_study(result) != (first["kind"] == "study"):
            raise InvalidInputError("a study and a comparison do not go on one page; make a page of each")
        for side in "ab":
            mine, yours = (list(dict.fromkeys(one["sides"][side]["models"])) for one in (first, part))
            if mine != yours:
                raise InvalidInputError(
                    f"one page is about one set of models, under one readout or several: the first file has "
                    f"{formatting.listed(mine)}, another one {formatting.listed(yours)}; make a page of each"
                )
        if result.attrs.get("samples_fingerprint") != results[0].attrs.get("samples_fingerprint"):
            raise SampleMismatchError("these files are of different samples; one page needs the same for all readouts")
    readouts = [part["readout"] for part in parts]
    twice = sorted({readout for readout in readouts if readouts.count(readout) > 1})
    if twice:
        raise InvalidInputError(
            f"{formatting.listed(twice)} is the readout of more than one of these files; give one file a readout"
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
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # written by something else
        what = "study" if is_study(result) else "result"
        name = Path(result.encoding.get("source", f"this {what}")).name
        raise StoreError(
            f"{name} is damaged, or no whole {what}: {reason(error).partition('. ')[0]}; make it again"
        ) from error


def _parts(result: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Make one part for every readout."""
    if is_study(result):
        yield of_study(result)
        return
    variables = [str(name) for name, one in result.data_vars.items() if set(one.dims) == set(LAYERS)]
    if not variables:
        raise InvalidInputError("there is nothing to report: no measure with dims (layer_a, layer_b) in this result")
    readouts = dict.fromkeys(str(result[name].attrs.get("readout", "")) for name in variables)
    for readout in readouts:
        names = [name for name in variables if str(result[name].attrs.get("readout", "")) == readout]
        yield of_comparison(result, names, readout)
