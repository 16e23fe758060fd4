"""Tests of the payload of a page: every name and every number is that of the file."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, SampleMismatchError, StoreError
from repsim.report.payload import payload
from repsim.study import reading

MATRICES = ("value", "low", "high", "chance", "chance_sd", "z", "p")


def numbers(packed: Mapping[str, Any]) -> NDArray[Any]:
    kind = next(name for name in ("f8", "f4", "i4") if name in packed)
    return np.frombuffer(base64.b64decode(packed[kind]), f"<{kind}")


def matrix(part: Mapping[str, Any], name: str, k: int) -> NDArray[np.float64]:
    """Unpack a matrix as part.js does."""
    rows, columns = (len(part["sides"][side]["layers"]) for side in "ab")
    packed = part["matrices"][name][k]
    if packed is None:
        return np.full((rows, columns), np.nan)
    if packed == {}:
        value, low, chance, sd = (matrix(part, other, k) for other in ("value", "low", "chance", "chance_sd"))
        return 2 * value - low if name == "high" else (value - chance) / sd
    if "constant" in packed:
        return np.where(np.isnan(matrix(part, "value", k)), np.nan, packed["constant"])
    if "rows" in packed:
        return numbers(packed["rows"]).reshape(rows, columns).astype(float)
    values = np.empty((rows, columns))
    upper = np.triu_indices(rows)
    values[upper] = values.T[upper] = numbers(packed["triangle"])
    return values


def test_every_value_of_a_study_is_in_the_page(study: xr.Dataset) -> None:
    part = payload([study])["parts"][0]
    assert [measure["name"] for measure in part["measures"]] == study["measure"].values.tolist()
    for k in range(study.sizes["measure"]):
        for name in MATRICES:
            expected = study[name].isel(measure=k).values
            np.testing.assert_allclose(matrix(part, name, k), expected, rtol=2e-6, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(matrix(part, "value", k), study["value"].isel(measure=k).values, rtol=0, atol=1e-12)
    small = {str(name) for name, data in study.data_vars.items() if "layer_a" not in data.dims or data.ndim == 2}
    assert set(part["variables"]) == small - set(MATRICES)
    for name, packed in part["variables"].items():
        assert packed["dims"] == list(study[name].dims)
        assert packed["shape"] == list(study[name].shape)
        if "text" in packed:
            assert packed["text"] == study[name].values.ravel().tolist()
        elif "sample" in packed["dims"]:
            np.testing.assert_array_equal(numbers(packed), study[name].values.ravel().astype("f4"))
        else:
            np.testing.assert_array_equal(numbers(packed), study[name].values.ravel())
    for name, labels in part["coords"].items():
        assert labels == list(map(str, study[name].values.tolist()))


def test_what_is_equal_or_follows_is_there_once(study: xr.Dataset) -> None:
    part = payload([study])["parts"][0]
    assert part["matrices"]["chance"][0] == {"constant": 0.0}
    assert "triangle" in part["matrices"]["value"][0]
    assert part["matrices"]["high"][0] == part["matrices"]["z"][0] == {}
    assert "f8" in part["matrices"]["value"][0]["triangle"]
    changed = study.copy(deep=True)
    changed["high"][0, 0, 1] += 0.1
    changed["value"][0, 1, 0] += 0.1
    part = payload([changed])["parts"][0]
    assert "rows" in part["matrices"]["high"][0]
    assert "rows" in part["matrices"]["value"][0]
    np.testing.assert_allclose(matrix(part, "high", 0), changed["high"].values[0], rtol=1e-6)


def test_a_comparison_is_a_page_with_fewer_parts(comparison: xr.Dataset) -> None:
    part = payload([comparison])["parts"][0]
    assert part["kind"] == "comparison"
    for k, measure in enumerate(part["measures"]):
        np.testing.assert_array_equal(matrix(part, "value", k), comparison[measure["name"]].values)
        assert list(measure["views"]) == ["value"]
    right = part["sides"]["b"]
    assert (right["models"], right["layers"]) == (["right"] * 3, ["blocks.0", "blocks.1", "head"])
    assert part["coords"] == {"pair": ["left x right"], "pair_a": ["left"], "pair_b": ["right"], "relation": [""]}
    assert any("head" in text for text in part["warnings"])


def test_variables_of_readouts_become_parts(comparison: xr.Dataset) -> None:
    both = xr.Dataset(coords=comparison.coords, attrs=comparison.attrs)
    for readout, factor in (("mean", 1), ("cls", 0.5)):
        variable = (comparison["cka"] * factor).assign_attrs(comparison["cka"].attrs, readout=readout)
        both[f"cka@{readout}"] = variable
    parts = payload([both])["parts"]
    assert [part["readout"] for part in parts] == ["mean", "cls"]
    np.testing.assert_array_equal(matrix(parts[1], "value", 0), both["cka@cls"].values)


def labels(study: xr.Dataset) -> dict[str, str]:
    return {share["name"]: share["label"] for share in payload([study])["parts"][0]["shares"]}


def claimed(study: xr.Dataset, level: str) -> xr.Dataset:
    """Return the study with this level of claim for every pair of families."""
    changed = study.copy()
    changed["claim_level"] = ("families", np.full(study.sizes["families"], level, dtype="U13"))
    reason = "" if level == "architectures" else "too few networks"
    changed["claim_reason"] = ("families", np.full(study.sizes["families"], reason))
    return changed


def tile(study: xr.Dataset, label: str) -> dict[str, Any]:
    tiles: list[dict[str, Any]] = payload([study])["parts"][0]["tiles"]
    return next((one for one in tiles if one["label"] == label), None) or next(
        one for one in tiles if one["label"].startswith(label)
    )


def test_names_of_shares_claim_no_more_than_the_verdict(study: xr.Dataset) -> None:
    for level, name in (("architectures", "universal"), ("networks", "common to families"), ("", "common to families")):
        changed = claimed(study, level)
        assert reading.verdict(changed) is (level == "architectures")
        assert labels(changed)["universal"] == name


def test_nothing_of_the_page_says_universal_unless_the_study_may(study: xr.Dataset) -> None:
    part = payload([claimed(study, "networks").assign_attrs(summary="[]", command="")])["parts"][0]
    texts = {name: value for name, value in part.items() if name not in {"matrices", "variables", "coords", "shares"}}
    assert "universal" not in str(texts)


@pytest.mark.slow
def test_the_tile_of_claims_says_at_which_level(study: xr.Dataset) -> None:
    label = "Pairs of families that exceed each control"
    shown = {level: tile(claimed(study, level), label) for level in ("", "networks", "architectures")}
    assert [one["value"] for one in shown.values()] == ["0 of 1", "1 of 1", "1 of 1"]
    assert [one["interval"] for one in shown.values()] == [
        "shown for none", "for networks of these architectures: 0", "for networks of these architectures: 1"
    ]  # fmt: skip
    rows = payload([claimed(study, "networks")])["parts"][0]["claims"]["rows"]
    assert rows == [["cnn x vit", "these networks", "too few networks"]]


def test_a_control_of_some_pairs_is_said_to_be_one_of_some(study: xr.Dataset) -> None:
    assert "only" not in tile(study, "The same in the strongest control")["interval"]
    fewer = study.copy(deep=True)
    fewer["pairs_counted"].loc[{"kind_of_pair": "other family"}] = 1
    own = float(study["trained_mean"].sel(kernel="cka", kind_of_pair="other family"))
    text = tile(fewer, "The same in the strongest control")["interval"]
    assert text.endswith(f"only 1 of 4 pairs have controls: trained, they have {own:.3f}")


def test_effects_and_energies_are_those_of_the_study(study: xr.Dataset) -> None:
    part = payload([study])["parts"][0]
    kernels = ["cka given input", "cka given input and labels"]
    assert [row[1] for row in part["effects"]["rows"]] == kernels
    for kernel, row in zip(kernels, part["effects"]["rows"], strict=True):
        at = study.sel(kernel=kernel, measure=kernel, families="cnn x vit")
        low, high = (float(at[f"effect_network_{end}"]) for end in ("low", "high"))
        assert row[3].startswith(f"{float(at['effect']):.3f} ({float(at['effect_low']):.3f} to ")
        assert row[4] == f"{low:.3f} to {high:.3f}"
        assert row[6:] == [f"{float(at[name]):.3f}" for name in ("p_exchange", "p_exchange_least")]
    trained, untrained, first, second = part["energies"]["rows"]
    assert [row[1] for row in part["energies"]["rows"]] == [
        "trained cnn, trained vit", "untrained cnn, untrained vit", "trained cnn, untrained vit",
        "untrained cnn, trained vit",
    ]  # fmt: skip
    given_input = study.sel(measure=kernels[0], kernel=kernels[0], families="cnn x vit")
    assert trained[2:5] == [
        f"{float(value):z.3f}"
        for value in (
            study["trained_value"].sel(measure="cka").item(),
            given_input["trained_value"],
            given_input["trained_energy"],
        )
    ]
    assert first[3:5] == [
        f"{float(given_input[name].sel(control_pair='first trained')):z.3f}"
        for name in ("control_value", "control_energy")
    ]
    left = study["energy_left"].sel(kernel=kernels[0])
    of_cnn = left.values[(study["network_family"] == "cnn") & (study["network_state"] == "untrained")].mean()
    assert untrained[5] == second[5] == f"{of_cnn:.3f}"


def test_what_an_earlier_study_does_not_hold_is_left_out(study: xr.Dataset) -> None:
    earlier = study.copy(deep=True)
    for name in ("claim_level", "claim_reason"):
        earlier[name] = ("families", np.full(study.sizes["families"], ""))
    for name in ("trained_mean", "common_share_noise", "agreement_signal"):
        earlier[name][:] = np.nan
    earlier["pairs_counted"][:] = 0
    part = payload([earlier])["parts"][0]
    assert part["claims"]["rows"] == []
    assert not any("exceed each control" in one["label"] for one in part["tiles"])
    texts = str([part["tiles"], part["maps"], part["stimuli"]])
    assert "only 0" not in texts
    assert "unrelated networks" not in texts
    assert "stand out" not in texts
    noise = study.copy(deep=True)
    noise["agreement_signal"][:] = 1.0
    assert str(payload([noise])["parts"][0]["stimuli"]).count("stand out") == study.sizes["kernel"]


def test_every_control_of_a_pair_is_in_the_page(study: xr.Dataset) -> None:
    packed = payload([study])["parts"][0]["controls"]
    assert packed["dims"] == ["measure", "pair", "control_pair"]
    values = numbers(packed).reshape(packed["shape"])
    strongest = np.where(np.isnan(values), -np.inf, values).max(-1)
    controlled = np.isfinite(study["control"].values)
    assert controlled.any()
    np.testing.assert_allclose(strongest[controlled], study["control"].values[controlled], atol=1e-12)
    assert np.isnan(values[~controlled]).all()
    assert np.isfinite(values[: study.sizes["kernel"] - 1]).all()  # of debiased CKA all three are known


@pytest.mark.slow
def test_files_of_different_things_are_refused(study: xr.Dataset, comparison: xr.Dataset) -> None:
    with pytest.raises(InvalidInputError, match="pass at least one study or result"):
        payload([])
    with pytest.raises(InvalidInputError, match="make a page of each"):
        payload([study, comparison])
    with pytest.raises(InvalidInputError, match="have the readout given"):
        payload([study, study])
    fewer = study.isel(layer_a=study["model_a"] != "cnn.seed0").assign_coords(readout="cls")
    with pytest.raises(InvalidInputError, match="one page shows the same models"):
        payload([study, fewer])
    with pytest.raises(SampleMismatchError, match="different samples"):
        payload([study, study.assign_coords(readout="cls").assign_attrs(samples_fingerprint="0")])
    with pytest.raises(InvalidInputError, match="no measure"):
        payload([comparison.drop_vars(["cka", "procrustes", "linear_regression"])])


@pytest.mark.parametrize("name", ["pair", "pair_b", "relation", "model", "layer_a"])
def test_coordinates_that_are_missing_are_named(study: xr.Dataset, name: str) -> None:
    with pytest.raises(StoreError, match=f"is damaged, or not a complete study: .*{name}"):
        payload([study.drop_vars(name)])


@pytest.mark.parametrize("name", ["summary", "warnings", "stores", "untrained"])
@pytest.mark.parametrize("value", ["no JSON {", 5, "5", '{"a": 1}', "[[1]]"])
def test_attributes_that_are_not_what_they_should_be_are_named(study: xr.Dataset, name: str, value: object) -> None:
    with pytest.raises(StoreError, match=f"the attribute '{name}' is not a JSON list") as caught:
        payload([study.assign_attrs({name: value})])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_is_missing_is_named(study: xr.Dataset, comparison: xr.Dataset) -> None:
    for name in ("value", "chance", "control_mean_low", "effect", "family", "readout", "model_a"):
        with pytest.raises(StoreError, match=f"not a complete study: .*{name}.*; make it again$"):
            payload([study.drop_vars(name)])
    with pytest.raises(StoreError, match="not a complete result"):
        payload([comparison.assign_attrs(stores_a='["left"]')])
    bare = study.copy()
    bare.attrs = {"format": study.attrs["format"]}
    assert payload([bare])["parts"][0]["summary"] == []
