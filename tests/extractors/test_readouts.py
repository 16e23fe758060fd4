"""Readouts against explicit computations, and the layers that they refuse."""

import pytest
import torch
from torch import Tensor

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extractors.base import Axes, LayerSpec, Site
from repsim.extractors.readouts import get, get_several, plan

MAPS = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4).sin()


def spec(
    axes: Axes, shape: tuple[int, ...], prefix: int | None = 0, grid: tuple[int, int] | None = (4, 4)
) -> LayerSpec:
    return LayerSpec("x", "Block", shape, axes, prefix, bool(prefix), grid, Site("x"))


TOKENS = MAPS.flatten(2).transpose(1, 2)
PREFIX = torch.full((2, 2, 3), 99.0)  # would be seen in every mean and every maximum
FORMS: dict[str, tuple[Tensor, LayerSpec]] = {
    "NCHW": (MAPS, spec("NCHW", (3, 4, 4))),
    "NHWC": (MAPS.permute(0, 2, 3, 1), spec("NHWC", (4, 4, 3))),
    "NLC": (TOKENS, spec("NLC", (16, 3))),
    "NCL": (MAPS.flatten(2), spec("NCL", (3, 16))),
    "prefix": (torch.cat([PREFIX, TOKENS], 1), spec("NLC", (18, 3), 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_map_reads_the_same(form: str) -> None:
    output, layer = FORMS[form]
    quarters = [MAPS[:, :, h : h + 2, w : w + 2].mean((2, 3)) for h in (0, 2) for w in (0, 2)]
    # three parts of four positions overlap, as adaptive pooling has it: [0, 1], [1, 2], [2, 3]
    ninths = [MAPS[:, :, h : h + 2, w : w + 2].mean((2, 3)) for h in (0, 1, 2) for w in (0, 1, 2)]
    expected = {
        "mean": MAPS.sum((2, 3)) / 16,
        "max": MAPS.flatten(2).sort(2).values[:, :, -1],
        "grid:1": MAPS.sum((2, 3)) / 16,
        "grid:2": torch.stack(quarters, 2).flatten(1),
        "grid:3": torch.stack(ninths, 2).flatten(1),
        "grid:4": MAPS.flatten(1),
    }
    for name, target in expected.items():
        readout = get(name)
        torch.testing.assert_close(readout(output, layer), target, rtol=1e-6, atol=1e-6)
        assert target[0].numel() == torch.Size(readout.shape(layer)).numel()


def test_the_class_token_is_the_first() -> None:
    output = torch.cat([torch.ones(2, 1, 3), 2 * torch.ones(2, 1, 3), TOKENS], 1)
    assert torch.equal(get("cls")(output, spec("NLC", (18, 3), 2)), torch.ones(2, 3))


def test_flatten_keeps_the_layers_own_order() -> None:
    output, layer = FORMS["NHWC"]
    assert torch.equal(get("flatten")(output, layer), output.reshape(2, -1))
    assert get("flatten").shape(layer) == (4, 4, 3)


OWNED = [("NCHW", name) for name in ("mean", "max", "flatten", "grid:2", "grid:4")]
OWNED += [(form, name) for form in ("NC", "NLC") for name in ("mean", "max", "cls", "flatten", "grid:2", "grid:4")]


@pytest.mark.parametrize(("form", "name"), OWNED)
def test_a_readout_owns_its_memory_and_is_float32(form: str, name: str) -> None:
    output = {"NC": MAPS[:, :, 0, 0], "NCHW": MAPS, "NLC": torch.cat([PREFIX, TOKENS], 1)}[form].clone()
    layer = spec(form, tuple(output.shape[1:]), 2 if form == "NLC" else 0)  # type: ignore[arg-type]
    for tensor in (output, output.bfloat16()):
        got = get(name)(tensor, layer)
        kept = got.clone()
        tensor.zero_()
        assert torch.equal(got, kept)
        assert kept.any()
        assert got.dtype == torch.float32


def test_half_precision_is_summed_in_float32() -> None:
    """4096 ones and one 1/512 more each: in bfloat16 the sum would stop growing at 256."""
    output = torch.ones(2, 1, 64, 64, dtype=torch.bfloat16)
    assert get("mean")(output, spec("NCHW", (1, 64, 64), grid=(64, 64))).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("cls", spec("NCHW", (3, 4, 4)), "there is no class token in an output of axes NCHW"),
        ("mean", spec("other", (2, 3, 4, 4)), "has no spatial axes to reduce; use flatten"),
        (
            "max",
            spec("NLC", (19, 3), None),
            "patch tokens cannot be distinguished from class and register tokens among 19 tokens",
        ),
        ("grid:2", spec("NHWC", (2, 8, 3), 0, None), "its positions form no grid"),
    ],
)
def test_impossible(name: str, layer: LayerSpec, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        get(name).shape(layer)
    with pytest.raises(InvalidInputError, match=message):
        plan((layer,), (get(name),))


def test_specs() -> None:
    assert [readout.name for readout in get_several("mean, cls,mean,grid:3")] == ["mean", "cls", "grid:3"]
    names = ["gram:4", "sketch:1", "sketch:7:3"]
    assert [(readout.name, readout.block) for readout in get_several(",".join(names))] == list(
        zip(names, (4, 1, 1), strict=True)
    )
    assert {get(name).block for name in ("mean", "max", "cls", "flatten", "grid:2")} == {1}
    assert get("sketch:7:0") == get("sketch:7")  # the default seed is 0
    for wrong, message in {
        "gram": "write gram:B with an integer B of at least 4, e.g. gram:256",
        "gram:3": "write gram:B with an integer B of at least 4, e.g. gram:256",
        "sketch:0": "write sketch:M with an integer M of at least 1, e.g. sketch:4096",
        "sketch:²": "write sketch:M with",
        "sketch:9:": "write sketch:M:SEED with an integer SEED of at least 0, e.g. sketch:4096:1",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            get(wrong)
    for wrong in ("grid", "grid:0", "grid:-1", "grid:x"):
        with pytest.raises(InvalidInputError, match="write grid:K"):
            get(wrong)
    with pytest.raises(UnknownNameError, match="unknown readout 'meen'; did you mean mean"):
        get("meen")
    with pytest.raises(InvalidInputError, match="no readout is named"):
        get_several(" ,")


def test_a_readout_that_some_layers_lack_is_left_out_with_a_note() -> None:
    block = spec("NLC", (17, 3), 1)
    embed = LayerSpec("embed", "PatchEmbed", (16, 3), "NLC", 0, False, (4, 4), Site("embed"))
    wanted, notes = plan((embed, block), (get("cls"), get("mean")))
    assert list(wanted) == [("embed", "mean"), ("x", "cls"), ("x", "mean")]
    assert notes == ["readout cls is left out for layers that do not have it: embed"]
