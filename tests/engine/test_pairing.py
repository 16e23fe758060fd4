"""Test deliberate pairs of samples: values, records, refusals, resumption, and real pictures that are blurred."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

import repsim
from repsim.engine.comparison import Comparison, compare, similarity
from repsim.engine.pair_matrix import Matrix
from repsim.errors import InvalidInputError, SampleMismatchError, StoreError
from repsim.results.files import open_result, save_result
from repsim.stores.alignment import AlignedView, StoredRows
from repsim.stores.pairing import pair
from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from tests.commands import calls

SPECS = ("cka", "cka:kernel=rbf", "svcca", "procrustes", "mutual_knn:k=4")
N = 60


def array(seed: int, n: int = N, p: int = 5) -> NDArray[np.float32]:
    shared = np.random.default_rng(7).normal(size=(n, 3))
    rng = np.random.default_rng(seed)
    return (shared @ rng.normal(size=(3, p)) + rng.normal(size=(n, p)) / 2).astype(np.float32)


def save(folder: Path, name: str, x: NDArray[Any], ids: list[str], **options: Any) -> ActivationStore:
    return write_store(folder / f"{name}.h5", {"out": x}, model=name, sample_ids=ids, source=name, **options)


@pytest.fixture
def shuffled(tmp_path: Path) -> tuple[ActivationStore, ActivationStore, NDArray[Any], NDArray[Any]]:
    """Make two stores that share 50 ids, in other orders, and the paired arrays in the order of the first."""
    x, y = array(1), array(2)
    order = np.random.default_rng(3).permutation(N)
    a = save(tmp_path, "a", x[:55], [f"{k}.png" for k in range(55)])
    b = save(tmp_path, "b", y[order][:], [f"{k}.png" if k < 50 else f"other{k}.png" for k in order])
    return a, b, x[:50], y[:50]


def test_equal_ids_are_paired_in_any_order(
    shuffled: tuple[ActivationStore, ActivationStore, NDArray[Any], NDArray[Any]],
) -> None:
    a, b, x, y = shuffled
    result = compare(a, b, SPECS, pair_by="id")
    for spec in SPECS:
        assert result[spec].item() == pytest.approx(similarity(x, y, spec), abs=1e-6), spec
    turned = compare(b, a, SPECS, pair_by="id")
    for spec in SPECS:
        assert turned[spec].item() == pytest.approx(similarity(y, x, spec), abs=1e-6), spec
    record = json.loads(result.attrs["pairing"])
    assert (record["by"], record["pairs"], result["n_samples"].item()) == ("id", 50, 50)
    assert record["sha256"] == result.attrs["samples_fingerprint"]
    assert [(side["model"], side["count"]) for side in record["left_out"]] == [("a", 5), ("b", 10)]
    assert record["left_out"][0]["ids"] == [f"{k}.png" for k in range(50, 55)]
    assert result["data"].item() == "a paired with b"


def test_pairs_of_any_ids_and_their_order(tmp_path: Path) -> None:
    """The order of the list does not count: the same pairs are the same comparison."""
    x, y = array(1), array(2)
    a = save(tmp_path, "left", x, [f"left{k}" for k in range(N)])
    b = save(tmp_path, "right", y, [f"right{k}" for k in range(N)])
    partner = np.random.default_rng(4).permutation(N)[:40]
    pairs = [(f"left{k}", f"right{partner[k]}") for k in range(40)]
    expected = compare(a, b, SPECS, pair_by=pairs)
    for spec in SPECS:
        assert expected[spec].item() == pytest.approx(similarity(x[:40], y[partner], spec), abs=1e-6), spec
    for header, lines in {
        ("a", "b"): pairs[::-1],
        ("left", "right"): pairs,
        ("right", "left"): [names[::-1] for names in pairs],
    }.items():
        with (tmp_path / "pairs.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
        result = compare(a, b, SPECS, pair_by=tmp_path / "pairs.csv")
        record = json.loads(result.attrs["pairing"])
        assert (record["by"], record["file"]) == ("file", "pairs.csv")
        assert result.attrs["samples_fingerprint"] == expected.attrs["samples_fingerprint"]
        for spec in SPECS:
            assert result[spec].item() == expected[spec].item()


def test_models_called_a_and_b_the_other_way_round(tmp_path: Path) -> None:
    """Names of models come first in a header, so that `a` is never the other model."""
    b = save(tmp_path, "b", array(1), [f"x{k}" for k in range(N)])
    a = save(tmp_path, "a", array(2), [f"y{k}" for k in range(N)])
    (tmp_path / "pairs.csv").write_text("a,b\n" + "".join(f"y{k},x{k}\n" for k in range(N)))
    assert compare(b, a, pair_by=tmp_path / "pairs.csv")["cka"].item() == pytest.approx(
        similarity(array(1), array(2)), abs=1e-6
    )


def test_many_stores_share_the_ids_of_all(tmp_path: Path) -> None:
    x = [array(seed) for seed in range(3)]
    orders = [np.random.default_rng(seed).permutation(N) for seed in range(3)]
    stores = [
        save(tmp_path, f"m{k}", x[k][order], [f"{i}" if i != 10 + k else f"only{k}" for i in order])
        for k, order in enumerate(orders)
    ]
    result = compare(stores, pair_by="id")["cka"]
    left = [i for i in orders[0] if i not in {10, 11, 12}]
    assert result["n_samples"].item() == N - 3
    for i in range(3):
        for j in range(3):
            value = result.sel(layer_a=f"m{i}/out", layer_b=f"m{j}/out").item()
            assert value == pytest.approx(similarity(x[i][left], x[j][left]), abs=1e-6)
    with pytest.raises(InvalidInputError, match="a list of pairs is for two stores, not for 3 stores"):
        compare(stores, pair_by=[("1", "1")])


@pytest.mark.slow
def test_layers_that_are_read_in_panels_give_the_same_values(tmp_path: Path, tuned: Callable[..., None]) -> None:
    tuned(panel=64, tile=64)
    n = 700
    order = np.random.default_rng(3).permutation(n)
    x, y = array(1, n, 2500), array(2, n, 2500)
    a, b = save(tmp_path, "a", x, [str(k) for k in range(n)]), save(tmp_path, "b", y[order], [str(k) for k in order])
    for spec in ("cka", "cka:kernel=rbf"):
        with Comparison(a, b, [spec], pair_by="id") as kept:
            amount = kept.plan.memory
        stage = kept.plan.stages[0]
        while stage.kept:
            amount -= 2**19
            with Comparison(a, b, [spec], pair_by="id", memory=amount) as tight:
                stage = tight.plan.stages[0]
                if not stage.kept:
                    assert tight.run()[spec].item() == pytest.approx(similarity(x, y, spec), abs=1e-5), spec


def test_rows_in_another_order_are_read_together_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = array(1, 2000, 8)
    made = save(tmp_path, "a", x, [str(k) for k in range(2000)])
    order = np.random.default_rng(0).permutation(2000)[:1500]
    reads: list[Any] = []
    original = ActivationStore._read

    def counted(self: ActivationStore, *args: Any) -> Any:
        reads.append(args)
        return original(self, *args)

    monkeypatch.setattr(ActivationStore, "_read", counted)
    rows = StoredRows(made["out"], torch.device("cpu"), order)
    assert rows.shape == (1500, 8)
    assert torch.equal(rows[:], torch.from_numpy(x[order]))
    assert len(reads) == 2, "the values and their checksums, not one system call a row"
    for wanted in (slice(100, 300), slice(None, None, 7), torch.tensor([5, 1499, 5])):
        assert torch.equal(rows[wanted], torch.from_numpy(x[order])[wanted])


def test_rows_far_apart_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = array(1, 40, 30_000)
    made = save(tmp_path, "a", x, [str(k) for k in range(40)])
    amounts: list[int] = []
    original = ActivationStore._read

    def counted(self: ActivationStore, extent: Any, start: int, stop: int) -> Any:
        amounts.append((stop - start) * extent.row_bytes)
        return original(self, extent, start, stop)

    monkeypatch.setattr(ActivationStore, "_read", counted)
    wanted = torch.tensor([30, 2, 31])
    assert torch.equal(StoredRows(made["out"], torch.device("cpu"))[wanted], torch.from_numpy(x[wanted.numpy()]))
    assert sum(amounts) < 4 * x[0].nbytes


def test_damage_matters_only_in_rows_that_are_paired(tmp_path: Path) -> None:
    x, y = array(1), array(2)
    a = save(tmp_path, "a", x, [str(k) for k in range(N)])
    b = save(tmp_path, "b", y, [str(k) for k in range(N)])
    raw = b.path.read_bytes()
    at = raw.index(y[10].tobytes())
    b.close()
    b.path.write_bytes(raw[:at] + b"\1\2" + raw[at + 2 :])
    others = [(str(k), str(k)) for k in range(N) if k != 10]
    assert compare(a, b.path, pair_by=others)["cka"].item() > 0
    for pairs in ("id", [(str(k), str(k)) for k in range(5, N)], [(str(k), str(N - 1 - k)) for k in range(N)]):
        with pytest.raises(StoreError, match="is damaged in row 10"):
            compare(a, b.path, pair_by=pairs)


# --- bad input


def lines_of(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines_of("0,0", "1,1"), "the first line of .*pairs.csv has to name the two columns: a,b or neta,netb; it is"),
        (lines_of("a,neta", "1,1"), "has to name the two columns"),
        (lines_of("a,b,c", "0,0,0"), "has to name the two columns"),
        (lines_of("a,b"), "pairs.csv holds no pairs"),
        (lines_of("a,b", "0,0", "x,1"), "1 of 2 ids are not in neta.h5, the first: 'x' .its ids look like '0'."),
        (lines_of("a,b", "0,0", "1,y", "2,z"), "2 of 3 ids are not in netb.h5, the first: 'y'"),
        (lines_of("a,b", "0,0", "0,1"), "'0' of neta.h5 has 2 partners"),
        (lines_of("a,b", "0,3", "1,3", "2,3"), "'3' of netb.h5 has 3 partners"),
        (lines_of("a,b", "0"), "is not a table of pairs"),
        (lines_of("a,b", "0,"), "1 of 1 ids are not in netb.h5, the first: ''"),
        ("", "is not a table of pairs"),
        ("a,b\n\xff", "is not text in UTF-8"),
        (None, "pairs.csv is not a file; --pair-by takes `id`, or a CSV file"),
    ],
)
def test_bad_lists_of_pairs_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    for seed, name in enumerate(["neta", "netb"]):
        save(tmp_path, name, array(seed), [str(k) for k in range(N)]).close()
    if text is not None:
        (tmp_path / "pairs.csv").write_bytes(text.encode("latin-1"))
    before = sorted(tmp_path.iterdir())
    stores = (tmp_path / "neta.h5", tmp_path / "netb.h5")
    line = calls.fail("compare", *stores, "--pair-by", tmp_path / "pairs.csv", "-o", tmp_path / "r.nc")
    assert re.search(message, line), line
    assert sorted(tmp_path.iterdir()) == before


def test_too_few_pairs(tmp_path: Path) -> None:
    a, b = (save(tmp_path, name, array(1), [str(k) for k in range(N)]) for name in "ab")
    (tmp_path / "pairs.csv").write_text(lines_of("a,b", "0,0", "1,1"))
    before = sorted(tmp_path.iterdir())
    failed = calls.run("compare", a.path, b.path, "--pair-by", tmp_path / "pairs.csv", "-o", tmp_path / "r.nc")
    assert failed.exit_code == 2
    assert "2 pairs of samples are too few: this measure needs at least 4" in failed.stderr.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_pairs_that_are_no_pairs(tmp_path: Path) -> None:
    a, b = (save(tmp_path, name, array(1), [str(k) for k in range(N)]) for name in "ab")
    for wrong in ([("0",)], 3, ["0"], [("0", "1", "2")]):
        with pytest.raises(InvalidInputError, match="pairs are a sequence of"):
            compare(a, b, pair_by=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="sample ids are texts, not int such as 1"):
        compare(a, b, pair_by=[(1, 1)])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="a list of pairs is for two stores, not for one store"):
        compare(a, a, pair_by=[("0", "1")])


def test_stores_without_a_common_id(tmp_path: Path) -> None:
    a = save(tmp_path, "a", array(1), [f"left{k}" for k in range(N)])
    b = save(tmp_path, "b", array(2), [f"right{k}" for k in range(N)])
    with pytest.raises(SampleMismatchError, match=r"no sample id is in all of the stores: a.h5 .left0, .*pairs.csv"):
        compare(a, b, pair_by="id")
    assert "no sample id" in calls.fail("compare", a.path, b.path, "--pair-by", "id")


def test_the_default_refuses_and_advises_only_where_ids_match(tmp_path: Path) -> None:
    ids = [str(k) for k in range(N)]
    a = save(tmp_path, "a", array(1), ids)
    order, part = save(tmp_path, "b", array(2), ids[::-1]), save(tmp_path, "c", array(2)[:30], ids[:30])
    other = save(tmp_path, "d", array(2), [*ids[:10], *(f"other{k}" for k in range(N - 10))])
    for store in (order, part):
        line = calls.fail("compare", a.path, store.path)
        assert line.endswith("or pair equal ids deliberately with --pair-by id"), line
        with pytest.raises(SampleMismatchError, match="pair equal ids deliberately with pair_by='id'"):
            compare(a, store)
    with pytest.raises(SampleMismatchError) as refused:
        compare(a, other)
    assert "pair" not in str(refused.value)


def test_classes_of_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [str(k) for k in range(N)]
    classes = [k % 3 for k in range(N)]
    a = save(tmp_path, "a", array(1), ids, labels=classes)
    alike = save(tmp_path, "b", array(2)[::-1], ids[::-1], labels=[f"c{c}" for c in classes[::-1]])
    assert compare(a, alike, pair_by="id")["cka"].item() > 0
    unlike = save(tmp_path, "c", array(2), ids, labels=[k % 4 for k in range(N)])
    with pytest.raises(SampleMismatchError, match="give the same samples different class labels") as refused:
        compare(a, unlike, pair_by="id")
    assert "pair_by" not in str(refused.value)
    with caplog.at_level("INFO", "repsim"):
        compare(a, unlike, pair_by=[(k, k) for k in ids])
    assert "a.h5 and c.h5 put the pairs into different classes" in caplog.text


def test_notes_name_what_is_left_out(
    shuffled: tuple[ActivationStore, ActivationStore, NDArray[Any], NDArray[Any]],
) -> None:
    a, b, _, _ = shuffled
    first = next(name for name in b.sample_ids if name.startswith("other"))
    lines = calls.succeed("compare", a.path, b.path, "--pair-by", "id").stderr.splitlines()
    assert lines[:3] == [
        "note: samples are paired by their ids: 50 pairs",
        "note: 5 of 55 samples of a.h5 have no partner and are left out, the first: 50.png",
        f"note: 10 of 60 samples of b.h5 have no partner and are left out, the first: {first}",
    ]


# --- growing and resuming


def test_a_result_grows_by_the_same_pairs_only(tmp_path: Path) -> None:
    ids = [str(k) for k in range(N)]
    a, b = (save(tmp_path, name, array(seed), ids) for seed, name in enumerate("ab"))
    out = tmp_path / "r.nc"
    pairs = [(k, str((int(k) + 1) % N)) for k in ids]
    compare(a, b, pair_by=pairs, out=out)
    before = out.read_bytes()
    for other in (None, "id", [(k, k) for k in ids], pairs[:-1]):
        with pytest.raises(InvalidInputError, match="the earlier result is about other pairs of samples"):
            compare(a, b, ["svcca"], pair_by=other, out=out)
    assert out.read_bytes() == before
    assert list(compare(a, b, ["svcca"], pair_by=pairs[::-1], out=out).data_vars) == ["cka", "svcca"]
    assert json.loads(open_result(out).attrs["pairing"])["pairs"] == N
    plain = compare(a, b)
    with pytest.raises(InvalidInputError, match="other pairs"):
        Matrix([a], [b], AlignedView(a, b, pairing=pair([a, b], "id"))).add_earlier_result(plain, [])


def test_parts_of_other_pairs_are_not_resumed(tmp_path: Path) -> None:
    """A run that is killed leaves parts; the parts of other pairs have other values."""
    ids = [str(k) for k in range(N)]
    a, b = (save(tmp_path, name, array(seed), ids) for seed, name in enumerate("ab"))

    class KilledError(Exception):
        pass

    def die(_: Any) -> None:
        raise KilledError

    with Comparison(a, b, ["cka"], pair_by="id") as planned, pytest.raises(KilledError):
        planned.run(parts=tmp_path / "parts", save=die)
    assert list((tmp_path / "parts").glob("*.part"))
    with Comparison(a, b, ["cka"], pair_by=[(k, str((int(k) + 1) % N)) for k in ids]) as planned:
        value = planned.run(parts=tmp_path / "parts")["cka"].item()
    assert value == pytest.approx(similarity(array(0), np.roll(array(1), -1, 0)), abs=1e-6)


# --- compressed readouts


@pytest.mark.slow
def test_blocks_of_samples_cannot_be_paired_in_another_order(tmp_path: Path, pictures: Callable[..., Path]) -> None:
    names = [f"{k:02d}.png" for k in range(24)]
    clean = pictures(names=names, folder="clean")
    dark = tmp_path / "dark"
    dark.mkdir()
    for name in names:
        Image.open(clean / name).point(lambda v: v // 2).save(dark / name)
    settings: dict[str, Any] = {"readout": "gram:8,sketch:16", "layers": "blocks.5"}
    made = {
        folder.name: repsim.extract("digits_vit.seed0", folder, tmp_path, name=folder.name, **settings)
        for folder in (clean, dark)
    }
    whole = compare(made["clean"], made["dark"], readouts=["gram:8", "sketch:16"], pair_by="id")
    assert 0 < whole["cka@gram:8"].item() < 1
    for pairs in ([(k, k) for k in names[:-1]], [*zip(names, names[::-1], strict=True)]):
        with pytest.raises(InvalidInputError, match="gram:8 keeps blocks of samples, which cannot be taken apart"):
            compare(made["clean"], made["dark"], pair_by=pairs)
        line = json.loads(compare(made["clean"], made["dark"], readouts="sketch:16", pair_by=pairs).attrs["pairing"])
        assert line["pairs"] == len(pairs)
    turned = compare(made["clean"], made["dark"], readouts="sketch:16", pair_by=pairs)["cka"].item()
    features = [
        repsim.extract("digits_vit.seed0", folder, tmp_path, name=f"full {folder.name}", layers="blocks.5")
        for folder in (clean, dark)
    ]
    straight = compare(features[0], features[1], pair_by="id")["cka"].item()
    full = compare(features[0], features[1], pair_by=pairs)["cka"].item()
    assert full < straight - 0.2, "the two orders differ by more than the errors of the sketches"
    assert abs(turned - full) < 0.2 < straight - turned


# --- real pictures


@pytest.mark.slow
def test_clean_and_blurred_digits(tmp_path: Path) -> None:
    """Mild blur changes little, strong blur much, and pairs at random are at the level of chance."""
    digits = load_digits().images[:400:2]
    radii, model = (0.0, 0.5, 2.0, 4.0, 8.0), "digits_vit.seed0"
    stores = []
    for radius in radii:
        folder = tmp_path / f"blur {radius}"
        folder.mkdir()
        for k, picture in enumerate(digits):
            image = Image.fromarray(np.uint8(picture * (255 / 16))).resize((32, 32), Image.Resampling.BICUBIC)
            image.filter(ImageFilter.GaussianBlur(radius)).save(folder / f"{k:03d}.png")
        stores.append(repsim.extract(model, folder, tmp_path, name=folder.name, layers="blocks.*"))
    assert len({store.sample_ids.ids for store in stores}) == 1, "ids are paths inside of the folder"
    values = np.array([np.diag(compare(stores[0], store, pair_by="id")["cka"]) for store in stores[1:]])
    assert (values[0] > 0.99).all()
    assert (np.diff(values, axis=0) < 0).all()
    assert (values[-1] < 0.5).all()
    ids = list(stores[0].sample_ids)
    random = np.random.default_rng(0).permutation(ids).tolist()
    pairs = compare(stores[0], stores[1], pair_by=list(zip(ids, random, strict=True)))
    assert np.abs(pairs["cka"]).max() < 0.05, "debiased CKA of unrelated samples is 0 on average, +-0.02 here"
    record = json.loads(compare(stores[0], stores[1], pair_by="id").attrs["pairing"])
    assert record["other_contents"] == len(digits)
    save_result(pairs, tmp_path / "pairs.nc")
    assert open_result(tmp_path / "pairs.nc").attrs["pairing"] == pairs.attrs["pairing"]
    with pytest.raises(SampleMismatchError, match=r"other pictures .*pair_by='id'"):
        compare(stores[0], stores[1])


def test_notes_count_the_pictures_of_two_stores_and_of_several(tmp_path: Path) -> None:
    stores = [
        write_store(
            tmp_path / f"{name}.h5", {"out": np.eye(12)[:, :3]}, model=name, sample_ids=list("abcdefghijkl"),
            provenance={"modality": "image"},
        )
        for name in "xyz"
    ]  # fmt: skip
    for count, words in ((2, "the two pictures differ in 5 of them"), (3, "their pictures differ in 5 of them")):
        assert words in replace(pair(stores[:count], "id"), other_contents=5).notes[0]
