"""Run the whole analysis on the networks and images that come with repsim (`repsim demo`)."""

from pathlib import Path
from typing import Any

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
_STUDY_METRICS = ("cka", "mutual_knn")
_PERMUTATIONS = 299
_PICTURES = 450
"""Number of digits, of 898 that the networks were not trained on: with all of them the demo takes over a minute."""
_FAMILIES = ("digits_resnet", "digits_vit")
_PAIRS = {
    "resnet_seed0_vs_seed1": (
        "digits_resnet.seed0", "digits_resnet.seed1",
        "two seeds of one ResNet: under CKA each layer is most similar to the same layer or a neighbour (the diagonal)",
    ),
    "vit_seed0_vs_seed1": ("digits_vit.seed0", "digits_vit.seed1", "two seeds of one ViT"),
    "resnet_vs_vit": (
        "digits_resnet.seed0", "digits_vit.seed0",
        "two architectures: which depth of the ViT corresponds to each block of the ResNet?",
    ),
    "resnet_vs_untrained": (
        "digits_resnet.seed0", "digits_resnet+random-seed0",
        "a trained and an untrained ResNet: which layers training changed",
    ),
}  # fmt: skip


def _extract(models: list[str], folder: Path, **options: Any) -> None:
    stores = extract(models, "digits", folder, split="test", limit=_PICTURES, overwrite=True, **options)
    for store in stores:
        store.close()


def run(folder: Path, progress: Progress | None = None) -> dict[Path, str]:
    """Extract trained and untrained networks on the held-out digits, compare them, draw figures and conduct a study.

    Existing files are replaced.

    Parameters
    ----------
    folder : Path
        Folder for all output files.
    progress : callable, optional
        Called with the number of finished steps and their total.

    Returns
    -------
    dict
        Main output files, each with a description.
    """
    names = [f"{family}.seed{seed}" for family in _FAMILIES for seed in SEEDS]
    step = counter(1 + len(SEEDS) + len(_PAIRS) + 1, progress)
    acts = folder / "acts"
    _extract(names, acts)  # networks that are extracted together read the pictures once
    step()
    for seed in SEEDS:
        _extract(list(_FAMILIES), acts, weights="random", seed=seed, recalibrate=True)
        step()
    files = {acts: "the activation stores"}
    for title, (a, b, description) in _PAIRS.items():
        result = compare(acts / f"{a}.h5", acts / f"{b}.h5", METRICS)
        save_result(result, folder / f"{title}.nc", overwrite=True)
        picture = folder / f"{title}.png"
        figures.save(figures.figure(result), picture)
        files[picture] = description
        step()
    stores = [acts / f"{name}.h5" for name in names]
    stores += [acts / f"{family}+random-seed{seed}.h5" for family in _FAMILIES for seed in SEEDS]
    study = universality(stores, _STUDY_METRICS, permutations=_PERMUTATIONS)
    save_result(study, folder / STUDY, overwrite=True)
    files[folder / STUDY] = "the universality study, which the summary below describes"
    files |= {path: text for _, text, path in figures.save_all(study, folder / "figures") if path}
    write_report(study, folder / REPORT, thumbnails="digits", overwrite=True)
    files[folder / REPORT] = "the whole study as an interactive page, to open in a browser"
    step()
    return files
