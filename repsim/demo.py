"""The demonstration: the whole chain on the embedded zoo, so that a newcomer sees a true result within a minute."""

from collections.abc import Callable, Iterator
from pathlib import Path

from repsim import figures
from repsim.comparison import compare
from repsim.extraction import extract
from repsim.extractors.zoo import SEEDS
from repsim.results import save_result

METRICS = ("cka", "svcca")
READOUT = "flatten"
"""Spatial detail tells the layers of these small networks apart; averaged over positions they look alike."""

_FAMILIES = ("digits_resnet", "digits_vit")
_PAIRS = {
    "resnet_seed0_vs_seed1": (
        "digits_resnet.seed0", "digits_resnet.seed1",
        "two seeds of one ResNet: each layer is most like its namesake, the diagonal",
    ),
    "vit_seed0_vs_seed1": ("digits_vit.seed0", "digits_vit.seed1", "two seeds of one ViT"),
    "resnet_vs_vit": (
        "digits_resnet.seed0", "digits_vit.seed0",
        "across architectures: which depth of a ViT does a ResNet's block correspond to?",
    ),
    "resnet_vs_untrained": (
        "digits_resnet.seed0", "digits_resnet+random-seed0",
        "the same ResNet before training: what the architecture and the pixels alone give",
    ),
}  # fmt: skip


def run(folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[Path, str]:
    """Extract the zoo, trained and untrained, on the held-out digits; compare; draw. What is there is replaced.

    Returns
    -------
    dict
        Each file that matters, and what to see in it.
    """
    names = [f"{family}.seed{seed}" for family in _FAMILIES for seed in SEEDS]
    done = _count(len(names) + len(_FAMILIES) + len(_PAIRS), progress)
    acts = folder / "acts"
    for name in names:
        extract(name, "digits", acts, split="test", readout=READOUT, overwrite=True).close()
        next(done)
    for family in _FAMILIES:
        extract(family, "digits", acts, split="test", readout=READOUT, weights="random", overwrite=True).close()
        next(done)
    made = {acts: "the activation stores (repsim inspect)"}
    for title, (a, b, what) in _PAIRS.items():
        result = compare(acts / f"{a}.h5", acts / f"{b}.h5", METRICS)
        save_result(result, folder / f"{title}.nc", overwrite=True)
        picture = folder / f"{title}.png"
        figures.save(figures.figure(result), picture)
        made[picture] = what
        next(done)
    return made


def _count(total: int, progress: Callable[[int, int], None] | None) -> Iterator[int]:
    for step in range(1, total + 1):
        if progress is not None:
            progress(step, total)
        yield step
