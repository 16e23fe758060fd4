"""Options of `repsim extract` that say which weights, which size and which normalisation its models have."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from repsim.errors import InvalidInputError

if TYPE_CHECKING:
    from repsim.study.study_file import Model

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--weights",
        multiple=True,
        help="pretrained, random, or a .safetensors or .pth file; of several models one for all, or one for each, in "
        "order.  [default: pretrained]",
    ),
    click.option(
        "--seed", type=int, multiple=True, help="Of random weights; one for all, or one for each model.  [default: 0]"
    ),
    click.option("--weights-key", metavar="KEY", help="Which set of weights of a checkpoint: state_dict, ..."),
    click.option("--weights-prefix", metavar="PREFIX", help="Only weights whose names begin so, without it."),
    click.option(
        "--weights-match",
        type=click.Choice(["names", "order"]),
        default="names",
        show_default=True,
        help="Weights by their names, or in order, where these differ and all shapes are equal.",
    ),
    click.option(
        "--img-size",
        metavar="N|HxW",
        help="Pixels of the pictures; where weights are of another size, they "
        "are resampled.  [default: as the weights, else the model's name]",
    ),
    click.option("--mean", metavar="X|X,X,X", help="Of the pixels in [0, 1], to normalise them."),
    click.option("--std", metavar="X|X,X,X", help="The same."),
    click.option("--interpolation", help="With which pictures are resized: bicubic, bilinear, ..."),
    click.option("--crop-pct", metavar="X", help="Share of the resized picture that the crop takes."),
    click.option(
        "--model-kwarg",
        "model_kwargs",
        metavar="KEY=VALUE",
        multiple=True,
        help="Argument of the function that builds the model: global_pool=avg; several times.",
    ),
)


def model_options(command: F) -> F:
    """Add the options to a command, in their order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def pair_models(
    names: Sequence[str],
    weights: Sequence[str],
    seeds: Sequence[int],
    called: Sequence[str] = (),
    *,
    recalibrate: bool,
    model_kwargs: Sequence[str] = (),
    **chosen: Any,
) -> list["Model"]:
    """Give every model its weights and seed, one for all or one for each in order, and what it is called.

    Raises
    ------
    InvalidInputError
        There are neither one nor as many weights or seeds as models, or neither none nor as many names.
    """
    from repsim.study.study_file import Model

    for flag, values in (("--weights", weights), ("--seed", seeds)):
        if len(values) > 1 and len(values) != len(names):
            raise InvalidInputError(
                f"{len(values)} {flag} for {len(names)} model{'s' * (len(names) > 1)} ({', '.join(names)}): "
                "give one for all, or one for each, in order"
            )
    count = len(names)
    stores: Sequence[str | None] = called or [None] * count
    if called and len(called) != count:
        raise InvalidInputError(f"{len(called)} --name for {count} models; give one for each, in their order, or none")
    return [
        Model(
            name=name,
            weights=file,
            seed=seed,
            store=store,
            recalibrate=recalibrate,
            model_kwargs=tuple(model_kwargs),
            **chosen,
        )
        for name, store, file, seed in zip(
            names,
            stores,
            weights if len(weights) == count else list(weights or ["pretrained"]) * count,
            seeds if len(seeds) == count else list(seeds or [0]) * count,
            strict=True,
        )
    ]
