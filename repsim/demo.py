"""The demonstration: the whole chain on the embedded zoo, so that a newcomer sees a true result within a minute."""

from pathlib import Path

from repsim import figures
from repsim.engine.comparison import compare
from repsim.extraction.runs import extract
from repsim.extractors.zoo import SEEDS
from repsim.report.page import write_report
from repsim.results.files import save_result
from repsim.runtime.progress import Progress, counter
from repsim.study.universality import universality

METRICS = ("cka", "svcca")
STUDY = "study.nc"
REPORT = "report.html"
_OF_STUDY = ("cka", "mutual_knn")
_PERMUTATIONS = 299
_FAMILIES = ("digits_resnet", "digits_vit")
_PAIRS = {
    "resnet_seed0_vs_seed1": (
        "digits_resnet.seed0", "digits_resnet.seed1",
        "two seeds of one ResNet: under CKA each layer is most like its namesake or a neighbour, the diagonal",
    ),
    "vit_seed0_vs_seed1": ("digits_vit.seed0", "digits_vit.seed1", "two seeds of one ViT"),
    "resnet_vs_vit": (
        "digits_resnet.seed0", "digits_vit.seed0",
        "across architectures: which depth of a ViT does a ResNet's block correspond to?",
    ),
    "resnet_vs_untrained": (
        "digits_resnet.seed0", "digits_resnet+random-seed0",
        "the same ResNet before it was trained: what training changed, and where",
    ),
}  # fmt: skip


def run(folder: Path, progress: Progress | None = None) -> dict[Path, str]:
    """Extract the zoo, trained and untrained, on the held-out digits; compare; draw; study how universal it all is.

    What is there is replaced.

    Returns
    -------
    dict
        Each file that matters, and what to see in it.
    """
    names = [f"{family}.seed{seed}" for family in _FAMILIES for seed in SEEDS]
    step = counter(len(names) + len(_FAMILIES) * len(SEEDS) + len(_PAIRS) + 1, progress)
    acts = folder / "acts"
    for name in names:
        extract(name, "digits", acts, split="test", overwrite=True).close()
        step()
    for family in _FAMILIES:
        for seed in SEEDS:
            extract(
                family, "digits", acts, split="test", weights="random", seed=seed, recalibrate=True, overwrite=True
            ).close()
            step()
    made = {acts: "the activation stores (repsim inspect)"}
    for title, (a, b, what) in _PAIRS.items():
        result = compare(acts / f"{a}.h5", acts / f"{b}.h5", METRICS)
        save_result(result, folder / f"{title}.nc", overwrite=True)
        picture = folder / f"{title}.png"
        figures.save(figures.figure(result), picture)
        made[picture] = what
        step()
    stores = [acts / f"{name}.h5" for name in names]
    stores += [acts / f"{family}+random-seed{seed}.h5" for family in _FAMILIES for seed in SEEDS]
    study = universality(stores, _OF_STUDY, permutations=_PERMUTATIONS)
    save_result(study, folder / STUDY, overwrite=True)
    made[folder / STUDY] = "how universal it all is: the summary below"
    made |= {path: what for _, what, path in figures.save_all(study, folder / "figures") if path}
    write_report(study, folder / REPORT, thumbnails="digits", overwrite=True)
    made[folder / REPORT] = "all of it as one page, to explore in a browser"
    step()
    return made
