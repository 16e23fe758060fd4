"""Study designs: families from the modules of timm and torchvision or by hand, seeds, relations of pairs."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim import extract
from repsim.errors import InvalidInputError, SampleMismatchError
from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from repsim.study.design import Design, Pair, design

MODELS = {  # model -> its provenance
    "resnet50.a1_in1k": {"architecture": "resnet50", "weights": "a1_in1k"},
    "vit_base_patch16_224.augreg": {"architecture": "vit_base_patch16_224"},
    "resnet50.tv_in1k": {"architecture": "resnet50"},
    "resnet18": {"architecture": "resnet18"},
    "torchvision-vit": {"architecture": "vit_b_16"},
    "digits_vit.seed2": {"architecture": "digits_vit"},
    "mine-seed7": {},
    "mine-seed8": {},
    "resnet50+random-seed0": {"architecture": "resnet50", "weights": "random"},
    "vit_base_patch16_224+random-seed0": {"architecture": "vit_base_patch16_224", "weights": "random"},
    "resnet50+random-seed1": {"architecture": "resnet50", "weights": "random"},
}


class StoreMaker:
    """Writer of stores, which are closed at the end of a test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack

    def __call__(self, model: str, layers: int = 2, n: int = 10, **options: Any) -> ActivationStore:
        options.setdefault("provenance", MODELS.get(model))
        arrays = {f"layer{k}": np.random.default_rng(k).normal(size=(n, 3)) for k in range(layers)}
        path = self.folder / f"{len(list(self.folder.iterdir()))}.h5"
        return self.stack.enter_context(write_store(path, arrays, model=model, **options))


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[StoreMaker]:
    with ExitStack() as stack:
        yield StoreMaker(tmp_path, stack)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ActivationStore]]:
    with ExitStack() as stack:
        make_store = StoreMaker(tmp_path_factory.mktemp("models"), stack)
        yield [make_store(model) for model in MODELS]


@pytest.fixture(scope="module")
def built(stores: list[ActivationStore]) -> Design:
    return design(stores)


def test_families_follow_from_the_names_of_architectures(built: Design) -> None:
    assert {member.name: member.family for member in built.members} == {
        "resnet50.a1_in1k": "resnet",
        "vit_base_patch16_224.augreg": "vit",
        "resnet50.tv_in1k": "resnet",
        "resnet18": "resnet",
        "torchvision-vit": "vit",
        "digits_vit.seed2": "digits_vit",
        "mine-seed7": "mine",
        "mine-seed8": "mine",
        "resnet50+random-seed0": "resnet",
        "vit_base_patch16_224+random-seed0": "vit",
        "resnet50+random-seed1": "resnet",
    }


def test_seeds_and_what_is_untrained(built: Design) -> None:
    seeds = {member.name: member.seed for member in built.members if member.seed is not None}
    assert seeds == {
        "digits_vit.seed2": 2, "mine-seed7": 7, "mine-seed8": 8, "resnet50+random-seed0": 0,
        "vit_base_patch16_224+random-seed0": 0, "resnet50+random-seed1": 1,
    }  # fmt: skip
    assert [member.name for member in built.untrained] == [name for name in MODELS if "random" in name]
    assert [member.name for member in built.trained] == [name for name in MODELS if "random" not in name]


def test_relations(built: Design) -> None:
    relations = {pair.name: pair.relation for pair in built.pairs}
    assert len(relations) == 8 * 7 / 2
    assert relations["resnet50.a1_in1k x resnet50.tv_in1k"] == "same architecture"
    assert relations["resnet50.a1_in1k x resnet18"] == "same family"
    assert relations["vit_base_patch16_224.augreg x torchvision-vit"] == "same family"
    assert relations["mine-seed7 x mine-seed8"] == "same architecture"
    assert sum(relation == "other family" for relation in relations.values()) == 28 - 5
    assert sum(relation == "same architecture" for relation in relations.values()) == 2


def controls(built: Design, pair: Pair) -> dict[str, list[str]]:
    return {name: [control.name for control in pairs] for name, pairs in built.controls_of(pair).items()}


def test_controls_are_all_pairs_of_untrained_networks_and_of_one_trained(built: Design) -> None:
    resnet, vit = built.trained[:2]
    r, v = "resnet50+random-seed", "vit_base_patch16_224+random-seed"
    assert controls(built, Pair(resnet, vit)) == {
        "both untrained": [f"{r}0 x {v}0", f"{r}1 x {v}0"],
        "first trained": [f"resnet50.a1_in1k x {v}0"],
        "second trained": [f"{r}0 x vit_base_patch16_224.augreg", f"{r}1 x vit_base_patch16_224.augreg"],
    }


def test_a_pair_and_its_reverse_have_the_same_controls(built: Design) -> None:
    """The controls of ResNet x ViT and ViT x ResNet do not depend on the order of the stores."""
    resnet, vit = built.trained[:2]
    turned = {"both untrained": "both untrained", "first trained": "second trained", "second trained": "first trained"}
    one, other = controls(built, Pair(resnet, vit)), controls(built, Pair(vit, resnet))
    for name, opposite in turned.items():
        assert {frozenset(pair.split(" x ")) for pair in one[name]} == {
            frozenset(pair.split(" x ")) for pair in other[opposite]
        }


def test_controls_within_an_architecture_and_without_untrained_networks(built: Design) -> None:
    """Two networks of one architecture: an untrained one is not paired with itself."""
    resnet, _, other, small = built.trained[:4]
    r = "resnet50+random-seed"
    assert controls(built, Pair(resnet, other)) == {
        "both untrained": [f"{r}0 x {r}1"],
        "first trained": [f"resnet50.a1_in1k x {r}0", f"resnet50.a1_in1k x {r}1"],
        "second trained": [f"{r}0 x resnet50.tv_in1k", f"{r}1 x resnet50.tv_in1k"],
    }
    assert controls(built, Pair(resnet, small)) == {
        "both untrained": [], "first trained": [], "second trained": [f"{r}0 x resnet18", f"{r}1 x resnet18"],
    }  # fmt: skip
    assert [twin.name for twin in built.twins_of(resnet)] == [f"{r}0", f"{r}1"]
    assert built.twins_of(small) == ()


def test_families_by_hand(stores: list[ActivationStore]) -> None:
    built = design(stores, families={"cnn": ["resnet*", "digits_*"], "vit": ["*vit*base*"]})
    assert {member.name: member.family for member in built.trained} == {
        "resnet50.a1_in1k": "cnn",
        "vit_base_patch16_224.augreg": "vit",
        "resnet50.tv_in1k": "cnn",
        "resnet18": "cnn",
        "torchvision-vit": "vit",  # no glob matches: by the name of the architecture
        "digits_vit.seed2": "cnn",
        "mine-seed7": "mine",
        "mine-seed8": "mine",
    }


def test_layers_of_the_readout_that_all_have(make_store: StoreMaker) -> None:
    a, b = make_store("a", layers=3, readout="mean"), make_store("b", readout="mean")
    built = design([a, b])
    assert built.members[0].arrays == ("layer0", "layer1", "layer2")
    assert built.members[1].layers == ("b/layer0", "b/layer1")
    assert built.n == 10
    assert built.ids.ids == tuple(map(str, range(10)))


def test_refusals(make_store: StoreMaker) -> None:
    a, again, b = make_store("a"), make_store("a"), make_store("b")
    refuse("name at least one store")
    refuse(r"0\.h5, .*1\.h5 are all of a model named 'a'", a, again)
    refuse(r"family 'cnn': no model's name matches 'resnet\*'; they are a, b", a, b, families={"cnn": ["resnet*"]})
    refuse("a is in two families, x and y", a, b, families={"x": ["*"], "y": ["a"]})
    refuse(r"0\.h5 holds no layer that is read out by cls, only by given", a, b, readout="cls")
    refuse(r"no readout in common \(given, mean\)", a, make_store("c", readout="mean"))
    lost = make_store("lost+random-seed0", provenance={"weights": "random"})
    refuse(r"all of these networks are untrained \(lost\+random-seed0\)", lost)


def test_compressed_readouts_are_refused(make_store: StoreMaker) -> None:
    for readout in ("gram:3", "sketch:3"):
        refuse(f"{readout} keeps only what CKA needs", make_store("a", readout=readout))


def test_several_readouts_need_a_choice(make_store: StoreMaker) -> None:
    store = extract(
        "digits_vit", data="digits", split="test", limit=10, out=make_store.folder, readout="mean,cls", weights="random"
    )
    make_store.stack.enter_context(store)
    trained = make_store("a", readout="cls", sample_ids=list(store.sample_ids))
    assert design([trained, store]).members[1].readout == "cls"
    refuse(
        "the stores have no readout in common", make_store("b", readout="x", sample_ids=list(store.sample_ids)), store
    )
    refuse(r"these readouts: mean, cls; name one that all of them have with readout", store)
    assert {array.partition("@")[2] for array in design([trained, store], readout="cls").members[1].arrays} == {"cls"}


def test_other_samples_are_refused(make_store: StoreMaker) -> None:
    with pytest.raises(SampleMismatchError, match=r"3 of 10 only in the second \(7, 8, 9\)"):
        design([make_store("a", n=7), make_store("b", n=10)])
    with pytest.raises(SampleMismatchError, match="another order"):
        design([make_store("c"), make_store("d", sample_ids=[str(i) for i in reversed(range(10))])])


@pytest.mark.parametrize(
    ("models", "notes"),
    [
        (["a"], ["one trained model (a)"]),
        (["a-seed0", "a-seed1"], ["all trained models are of one family (a)"]),
        (["a-seed0", "a-seed1", "b"], ["one model of b: the shares of family and seed"]),
        (["a", "b"], ["one model of a, b: the shares of family and seed"]),
        (["a-seed0", "a-seed1", "b-seed0", "b-seed1"], []),
        (
            ["resnet50.a1_in1k", "resnet18"],
            [
                "families by the names of the architectures: resnet (resnet50, resnet18)",
                "all trained models are of one family (resnet)",
                "resnet: members differ in architecture as well as in",
            ],
        ),
    ],
)
def test_what_the_models_cannot_tell(make_store: StoreMaker, models: list[str], notes: list[str]) -> None:
    written = design([make_store(model) for model in models]).notes
    assert len(written) == len(notes)
    for note, start in zip(written, notes, strict=True):
        assert note.startswith(start)
        assert "universal" not in note


def refuse(message: str, *stores: ActivationStore, **options: Any) -> None:
    with pytest.raises(InvalidInputError, match=message):
        design(stores, **options)


@pytest.mark.parametrize("name", ["a x b", "x b", "a x", "", " ", "universal", "Universal "])
def test_names_of_families_that_make_sentences_ambiguous_are_refused(make_store: StoreMaker, name: str) -> None:
    """The pairs ("a x b", "c") and ("a", "b x c") would have the same label."""
    store = make_store("mine-seed7")
    with pytest.raises(InvalidInputError, match="name") as error:
        design([store], families={name: ["mine*"]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("a x b", "a-x-b"), ("a x x b", "a-x-x-b"), ("x b", "x-b"), ("a x", "a-x"), ("axb", "axb"), ("x", "x"),
        ("max xl", "max xl"), ("universal", "family universal"), ("universal-net", "universal-net"),
    ],
)  # fmt: skip
def test_default_names_of_families_are_never_ambiguous(make_store: StoreMaker, architecture: str, family: str) -> None:
    built = design([make_store("mine-seed7", provenance={"architecture": architecture})])
    assert [member.family for member in built.trained] == [family]
    assert family == "x" or "x" not in family.split()


@pytest.mark.parametrize(
    ("library", "architecture", "family"),
    [
        ("timm", "resnext50_32x4d", "resnet"), ("torchvision", "vit_b_16", "vit"), ("transformers", "t5-2x16", "t5"),
        (None, "resnet50", "resnet50"),  # registered by the user
        ("open_clip", "resnet50", "resnet"), (["timm"], "resnet50", "resnet"), (5, "mynet", "mynet"),  # of users
    ],
)  # fmt: skip
def test_families_of_stores_that_say_which_library_defines_their_model(
    make_store: StoreMaker, library: Any, architecture: str, family: str
) -> None:
    built = design([make_store("net", provenance={"architecture": architecture, "library": library})])
    assert [member.family for member in built.trained] == [family]


@pytest.mark.slow
def test_the_design_of_extracted_networks_imports_no_library_of_models(tmp_path: Path) -> None:
    """Timm takes 200 MiB and three seconds."""
    weights = ["random", "pretrained"]
    stores = extract(["test_resnet", "digits_vit.seed0"], "digits", tmp_path, weights=weights, limit=20)
    program = f"""
import sys
from repsim.stores.store import open_store
from repsim.study.design import design
built = design([open_store(path) for path in {[str(store.path) for store in stores]}])
print(*(member.family for member in built.members), "timm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["digits_vit", "resnet", "False"]
