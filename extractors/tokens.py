"""Select real tokens among those of a padded batch, by its mask."""

from torch import Tensor, arange

from repsim.errors import InvalidInputError
from repsim.extractors.base import LayerSpec, Readout


def token_at(output: Tensor, positions: Tensor) -> Tensor:
    """Return the token at one position of each sample, (b, channels)."""
    return output[arange(len(output), device=output.device), positions]


def left_aligned(output: Tensor, mask: Tensor, layer: LayerSpec) -> Tensor:
    """Return the real tokens of each sample in their order, then zeros, (b, longest, channels).

    Raises
    ------
    InvalidInputError
        A sample has more tokens than the layer's shape allows.
    """
    longest, counts = layer.shape[0], mask.sum(1)
    if (most := int(counts.max())) > longest:
        raise InvalidInputError(
            f"layer {layer.name!r} has {most} tokens for a sample, more than {longest} in the trace; pad all samples "
            "to one length, or use mean"
        )
    # real tokens first: by sorting, as a GPU has to be waited for before a mask can be an index
    order = (~mask).int().sort(dim=1, stable=True).indices[:, :most, None]
    aligned = output.new_zeros(len(output), longest, output.shape[2])
    aligned[:, :most] = output.gather(1, order.expand(-1, -1, output.shape[2]))
    return aligned.masked_fill_(arange(longest, device=output.device)[:, None] >= counts[:, None, None], 0)


def padding_of(readout: Readout) -> str:
    """Return what a readout does with padding, for the attributes of a layer of tokens."""
    name = readout.name.partition(":")[0]
    return "behind the real tokens, as zeros" if name in {"flatten", "gram", "sketch"} else "left out"
