"""Test that arrays, labels, ids, names and records are converted without loss, or refused with a one-line error."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray as xr

import repsim
from repsim.errors import InvalidInputError
from repsim.runtime.arrays import is_finite
from repsim.stores.store import ActivationStore

X = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")
T = torch.from_numpy(X)
ROWS = list("abcdef")
FRAME = pd.DataFrame(X, index=ROWS)


def stored(folder: Path, layers: Any = None, **options: Any) -> ActivationStore:
    return repsim.write_store(folder / "s.h5", {"a": X} if layers is None else layers, **{"model": "m", **options})


def refused(folder: Path, message: str, layers: Any = None, **options: Any) -> None:
    """Check that writing the store raises a one-line error and leaves no file."""
    with pytest.raises(InvalidInputError, match=message) as error:
        stored(folder, layers, **options)
    assert "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


ACCEPTED = {
    "tensor": T,
    "with gradient": T.clone().requires_grad_(),
    "not contiguous": T.T.contiguous().T,
    "negated lazily": torch._neg_view(-T),
    "big endian": X.astype(">f4"),
    "reversed": X[::-1].copy()[::-1],
    "matrix": X.view(np.matrix),  # whose constructor warns
    "frame": pd.DataFrame(X),
    "xarray": xr.DataArray(X),
    "tensors": list(T.clone().requires_grad_()),
}


@pytest.mark.parametrize("array", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_arrays_are_stored_unchanged(tmp_path: Path, array: Any) -> None:
    store = stored(tmp_path, {"a": array}, pixels=array)
    assert store["a"].dtype == np.float32
    np.testing.assert_array_equal(store["a"], X)
    np.testing.assert_array_equal(store.pixels, X)
    assert store.provenance == {"extractor": "given"}
    with torch.no_grad():
        assert repsim.similarity(array, X) == pytest.approx(1, rel=1e-6)  # the order of a sum depends on the strides


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_short_floats_become_float32_and_the_record_says_so(tmp_path: Path, dtype: torch.dtype) -> None:
    short = T.to(dtype)
    store = stored(tmp_path, {"a": T, "b": short})
    np.testing.assert_array_equal(store["b"], short.float().numpy())
    assert store.provenance["converted_from"] == {"b": str(dtype).removeprefix("torch.")}
    assert repsim.similarity(short, X) == repsim.similarity(short.float(), X)


def test_float16_stays_float16(tmp_path: Path) -> None:
    store = stored(tmp_path, {"a": T.half()})
    assert store["a"].dtype == np.float16
    np.testing.assert_array_equal(store["a"], X.astype("f2"))


REFUSED = {
    "masked": (np.ma.masked_array(X, X > 1), "masked array, and 1 of its values are masked; leave"),
    "rows masked": (list(np.ma.masked_array(X, X > 1)), "holds masked arrays"),
    "objects": (X.astype(object), "dtype object: it holds Python objects; convert it with astype"),
    "text": (X.astype(str), "it holds text"),
    "a file's name": ("a.h5", "it holds text"),
    "dates": (X.astype("M8[s]"), "it holds dates"),
    "fields": (np.zeros(6, [("a", "f4")]), "it has fields"),
    "mixed frame": (pd.DataFrame({"a": [1.0] * 6, "b": ["x"] * 6}), "dtype object"),
    "missing": (pd.DataFrame({"a": pd.array([1, None] * 3, dtype="Int64"), "b": 1}), "NaN or infinite|dtype object"),
    "complex": (X * 1j, "complex"),
    "conjugate": (torch.tensor(X * 1j).conj(), "complex"),
    "meta": (torch.empty(6, 3, device="meta"), "meta, which holds no values"),
    "sparse tensor": (T.to_sparse(), r"give to_dense\(\)"),
    "sparse matrix": (scipy.sparse.csr_matrix(X), r"sparse csr_matrix; give toarray\(\)"),
    "ragged": ([[1.0, 2.0], [3.0]], "cannot be read as an array"),
    "nothing": (None, "dtype object"),
    "set": ({1, 2}, "a set, which has no order"),
    "dictionary": ({"a": X}, "a dict, which has no order"),
}


@pytest.mark.parametrize(("array", "message"), REFUSED.values(), ids=REFUSED)
def test_arrays_that_numpy_would_change_are_refused_everywhere(tmp_path: Path, array: Any, message: str) -> None:
    refused(tmp_path, message, {"a": array})
    if array is not None:
        refused(tmp_path, r"pixels must be numbers|NaN", pixels=array)
    for sides in ((array, X), (X, array)):
        with pytest.raises(InvalidInputError, match=message):
            repsim.similarity(*sides)
    with pytest.raises(InvalidInputError, match=message):
        repsim.permuted([array], [X], "cka", [range(6)])


def test_integers_that_float64_cannot_represent_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"beyond 2\*\*53"):
        repsim.similarity(2**60 + np.arange(18).reshape(6, 3), X)


def test_an_imaginary_part_is_not_dropped() -> None:
    """The same holds for complex long doubles, which torch lacks."""
    with pytest.raises(InvalidInputError, match="complex features cannot be compared"):
        repsim.similarity(X.astype(np.clongdouble) * (1 + 1j), X)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"a": X, "b": X.astype("f8")}, "the same for all, got float32 in layer 'a' and float64 in layer 'b'"),
        ({"a": X, "b": X > 0}, "got bool in layer 'b'; convert it with astype"),
        ({"a": X.astype("longdouble")}, r"got (float128|longdouble|float96) in layer 'a'"),
        ([X], "expected a dictionary"),
        (X, "expected a dictionary"),
        ({1: X}, "layer: expected text, got 1 of type int"),
        ({"a": FRAME, "b": FRAME.iloc[::-1]}, "row 0 is 'a' in .*'a' and 'f' in .*'b'"),
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused(tmp_path: Path, layers: Any, message: str) -> None:
    refused(tmp_path, message, layers)


def test_rows_with_different_names_are_refused() -> None:
    """pandas would align them by name."""
    numbered = pd.DataFrame(X)
    with pytest.raises(InvalidInputError, match="name their rows differently: row 0 is '0' in x and '5' in y"):
        repsim.similarity(numbered, numbered.iloc[::-1])
    named = xr.DataArray(X, dims=["sample", "p"], coords={"sample": ROWS})
    with pytest.raises(InvalidInputError, match="name their rows differently"):
        repsim.similarity(named, named[::-1])
    assert repsim.similarity(named, FRAME) == repsim.similarity(X, X)


def test_row_names_become_sample_ids(tmp_path: Path) -> None:
    assert stored(tmp_path, {"a": FRAME}).sample_ids.ids == tuple(ROWS)
    assert stored(tmp_path, {"a": FRAME}, sample_ids=ROWS, overwrite=True).sample_ids.ids == tuple(ROWS)
    assert stored(tmp_path, {"a": pd.DataFrame(X)}, overwrite=True).sample_ids.ids == tuple("012345")
    (tmp_path / "s.h5").unlink()
    refused(tmp_path, "sample 5 is 'g' in sample_ids and 'f' in the arrays", {"a": FRAME}, sample_ids=list("abcdeg"))
    refused(tmp_path, "'a' and labels name their rows", {"a": FRAME}, labels=pd.Series(range(6), ROWS[::-1]))


class Labels(NamedTuple):
    labels: Any
    numbers: Any
    classes: tuple[str, ...]


LABELS = {
    "numbers": Labels([2, 0, 1] * 2, [2, 0, 1] * 2, ()),
    "whole floats": Labels(np.arange(6.0), range(6), ()),
    "float16": Labels(np.arange(6, dtype="f2"), range(6), ()),
    "longdouble": Labels(np.arange(6, dtype="longdouble"), range(6), ()),
    "tensor": Labels(torch.arange(6), range(6), ()),
    "tensors": Labels(list(torch.arange(6)), range(6), ()),
    "bfloat16": Labels(torch.tensor([0, 1] * 3).bfloat16(), [0, 1] * 3, ()),
    "largest": Labels([2**63 - 1] * 6, [2**63 - 1] * 6, ()),
    "unsigned": Labels(np.arange(6, dtype="u8"), range(6), ()),
    "generator": Labels((i for i in range(6)), range(6), ()),
    "names": Labels(["dog", "cat", "Käse"] * 2, [2, 1, 0] * 2, ("Käse", "cat", "dog")),
    "array of names": Labels(np.array(["b", "a"] * 3), [1, 0] * 3, ("a", "b")),
    "objects": Labels(pd.Series(["b", "a"] * 3, dtype=object), [1, 0] * 3, ("a", "b")),
    "strings": Labels(pd.Series(["b", "a"] * 3, dtype="string"), [1, 0] * 3, ("a", "b")),
    "categories": Labels(pd.Categorical(["a", "b"] * 3, categories=["b", "a"]), [1, 0] * 3, ("b", "a")),
    "column": Labels(pd.Series(pd.Categorical(["a", "b"] * 3, categories=["b", "a"])), [1, 0] * 3, ("b", "a")),
    "booleans": Labels([True, False] * 3, [1, 0] * 3, ("False", "True")),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_are_class_numbers_or_names(tmp_path: Path, labels: Labels) -> None:
    store = stored(tmp_path, labels=labels.labels)
    assert store.labels is not None
    assert store.labels.tolist() == list(labels.numbers)
    assert store.classes == labels.classes


NO_LABELS = {
    "halves": (np.arange(6) / 2, "whole numbers or names; sample 1 has 0.5"),
    "nan": ([0, np.nan, 1, 1, 1, 1], "sample 1 has none"),
    "array with nan": (np.array([0, np.nan] * 3), "sample 1 has nan"),
    "infinite": (np.array([0, np.inf] * 3), "sample 1 has inf"),
    "none": (["a", None] * 3, "sample 1 has none"),
    "missing category": (pd.Categorical(["a", None] * 3), "sample 1 has none"),
    "missing string": (pd.Series(["a", None] * 3, dtype="string"), "sample 1 has none"),
    "missing number": (pd.Series([1, None] * 3, dtype="Int64"), "sample 1 has n"),
    "empty": (["", "a"] * 3, "sample 0 has none"),
    "one-hot": (np.eye(6), r"got \(6, 6\); of one-hot labels, or of scores, give argmax\(1\)"),
    "one-hot tensor": (torch.eye(6), r"argmax\(1\)"),
    "column": (np.ones((6, 1), int), r"ravel\(\)"),
    "one number": (3, r"of shape \(6,\), got \(\)"),
    "one text": ("abcdef", "got the single 'abcdef'"),
    "too few": ([1], "1 labels for 6 samples"),
    "negative": ([-1, 0, 0, 0, 0, 0], "sample 0 has -1, which is negative"),
    "unsigned": (np.full(6, 2**63, "u8"), "too large"),
    "huge": ([10**30] * 6, "sample 0 has 1000"),
    "large floats": (np.full(6, 1e17), "too large"),
    "longdouble": (np.full(6, np.longdouble(1) + np.finfo("longdouble").eps), "sample 0 has 1.0"),
    "both": ([1, "a"] * 3, "not both: sample 0 has 1, sample 1 has 'a'"),
    "masked": (np.ma.masked_equal([0, 1] * 3, 1), "3 of its values are masked"),
    "bytes": ([b"a"] * 6, "not dtype"),
    "dates": (np.zeros(6, "M8[s]"), "not dtype datetime64"),
    "complex": ([1j] * 6, "not dtype complex"),
    "set": (set(range(6)), "no order"),
    "null": (["a\0", "b"] * 3, "null character"),
    "surrogate": (["\udce9", "b"] * 3, "not valid Unicode"),
    "line": (["a\nb", "b"] * 3, "control character"),
}


@pytest.mark.parametrize(("labels", "message"), NO_LABELS.values(), ids=NO_LABELS)
def test_labels_that_would_be_changed_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    refused(tmp_path, message, labels=labels)


IDS = {
    "numbers": np.arange(6),
    "tensor": torch.arange(6),
    "index": pd.Index(list("012345")),
    "numpy text": np.array(list("012345")),
    "paths": [Path(str(i)) for i in range(6)],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_are_text_or_numbers(tmp_path: Path, ids: Any) -> None:
    assert stored(tmp_path, sample_ids=ids).sample_ids.ids == tuple("012345")


NO_IDS = {
    "floats": ([0.0, 1, 2, 3, 4, 5], "sample 0 has 0.0 of type float"),
    "bytes": ([b"a", *"bcdef"], "sample 0 has b'a' of type bytes"),
    "none": ([None, *"bcdef"], "sample 0 has None"),
    "booleans": ([True, *"bcdef"], "sample 0 has True"),
    "one text": ("abcdef", "expected a sequence of 6 ids, got a str"),
    "set": (set("abcdef"), "got a set"),
    "two axes": (np.eye(6), "of type ndarray"),
    "a number": (6, "'int' object is not iterable"),
    "a line": (["a\nb", *"bcdef"], "control character"),
    "empty": (["", *"bcdef"], "sample id is empty"),
    "long": (["x" * 5000, *"bcdef"], "takes 5,000 bytes, more than 4,096"),
    "twice": ([0, "0", *"bcde"], "sample id '0' occurs twice"),
}


@pytest.mark.parametrize(("ids", "message"), NO_IDS.values(), ids=NO_IDS)
def test_ids_that_would_be_changed_are_refused(tmp_path: Path, ids: Any, message: str) -> None:
    refused(tmp_path, message, sample_ids=ids)


@pytest.mark.parametrize(
    "name", ["a\0", "\0", "a\nb", "\x1b[31m", "a\u2028b", "\udce9", "x" * 5000, 3, None, Path("a")]
)
@pytest.mark.parametrize("what", ["model", "readout", "source", "layer"])
def test_names_that_a_store_cannot_hold(tmp_path: Path, what: str, name: Any) -> None:
    layers, options = ({name: X}, {}) if what == "layer" else (None, {what: name})
    refused(
        tmp_path, f"{what}.*(control character|not valid Unicode|takes 5,000 bytes|expected text)", layers, **options
    )


def test_names_that_a_store_can_hold(tmp_path: Path) -> None:
    names = ["日本語", "a b", "a@b", "..", "größer", "$x_1$", "x" * 1000]
    store = stored(tmp_path, dict.fromkeys(names, X), model="timm/resnet50.a1_in1k", source="")
    assert store.layers == tuple(names)
    assert store.model == "timm/resnet50.a1_in1k"


def test_provenance_of_python_and_numpy_values(tmp_path: Path) -> None:
    record = {
        "lr": np.float32(0.1),
        "epochs": np.int64(3),
        "ema": np.bool_(True),
        "shape": (3, 2),
        "means": np.arange(3),
        "tensor": torch.ones(2, requires_grad=True),
        "path": Path("a") / "b",
        "seen": datetime(2026, 1, 2),
        "day": np.datetime64("2026-01-02"),
        "name": np.str_("x"),
        "names": np.array(["x", "y"]),
        "deep": {"none": None, "text": "a\0\udce9"},
    }
    provenance = stored(tmp_path, provenance=record).provenance
    assert provenance == {
        "extractor": "given", "lr": float(np.float32(0.1)), "epochs": 3, "ema": True, "shape": [3, 2],
        "means": [0, 1, 2], "tensor": [1.0, 1.0], "path": str(Path("a/b")), "seen": "2026-01-02T00:00:00",
        "day": "2026-01-02", "name": "x", "names": ["x", "y"], "deep": {"none": None, "text": "a\0\udce9"},
    }  # fmt: skip
    assert json.loads(json.dumps(provenance, allow_nan=False)) == provenance


SELF: dict[str, Any] = {}
SELF["self"] = SELF

NO_RECORDS = {
    "nan": ({"loss": [0.1, np.nan]}, r"provenance\.loss\[1\] is nan"),
    "infinite": ({"loss": np.float32("inf")}, r"provenance\.loss is inf"),
    "bytes": ({"key": b"x"}, "of type bytes"),
    "set": ({"key": {1}}, "of type set"),
    "function": ({"key": len}, "of type builtin"),
    "complex": ({"key": 1j}, "of type complex"),
    "number as key": ({"key": {1: 2}}, r"provenance\.key has the key 1; keys are text"),
    "masked": ({"key": np.ma.masked_equal([1], 1)}, "masked"),
    "no dictionary": ([1], "expected a dictionary, got list"),
    "itself": (SELF, "does it contain itself"),
}


@pytest.mark.parametrize(("record", "message"), NO_RECORDS.values(), ids=NO_RECORDS)
def test_provenance_that_json_cannot_represent_is_refused(tmp_path: Path, record: Any, message: str) -> None:
    refused(tmp_path, message, provenance=record)


@pytest.mark.parametrize("value", [X, [X, X], 3, b"a", "", "a\0b", None, [None]])
def test_values_that_are_not_stores_are_refused(value: Any) -> None:
    for call in (repsim.compare, repsim.universality):
        with pytest.raises(InvalidInputError, match="expected a store or the name of its file, got |null character"):
            call(value)
    with pytest.raises(InvalidInputError, match="give two stores, or one list|expected a store or|null character"):
        repsim.compare(value, value)


def test_one_store_of_a_study_is_not_read_letter_by_letter(tmp_path: Path) -> None:
    with pytest.raises(repsim.RepsimError, match=r"no such file: .*abc\.h5"):
        repsim.universality(str(tmp_path / "abc.h5"))


@pytest.mark.parametrize("value", [X, None, 3, "ab"])
def test_one_array_is_no_list_of_layers(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="in a list of the layers of a side"):
        repsim.permuted(value, [X], "cka", [range(6)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_noticed_wherever_it_is(dtype: torch.dtype, bad: float) -> None:
    """The search looks at several values at once; a remainder is treated apart."""
    for size in (1, 7, 16, 67):
        for at in range(size):
            values = torch.linspace(-2, 3, size).to(dtype)
            assert is_finite(values)
            values[at] = bad
            assert not is_finite(values)
    large = torch.zeros(300, 400, dtype=dtype)
    assert is_finite(large)
    assert is_finite(large[:0])
    for place in ((0, 0), (299, 399), (150, 3)):
        large[place] = bad
        assert not is_finite(large)
        assert not is_finite(large.T)
        assert is_finite(large[:, 10:20])
        large[place] = 0
