"""Run every example of the documentation, page by page, in an empty folder per page.

A comment on the line before a block, invisible to readers, says how to run it:

``<!-- file: NAME -->``      write the block to this file
``<!-- given: acts -->``     before the block runs, ``acts/`` holds stores of four networks (``no acts``: nothing)
``<!-- given: demo -->``     before the block runs, ``demo/`` holds comparisons and a study of these, like `repsim demo`
``<!-- given: study -->``    before the block runs, ``study.nc`` is that study
``<!-- given: series -->``   before the block runs, ``series.nc`` is a series of two training runs
``<!-- not run: WHY -->``    the block cannot run; `REASONS` lists the permitted reasons

The Python blocks of a page share their variables. The output of ``>>>`` blocks and ``console`` blocks is compared. A
page fails if a block neither runs nor has a reason. Pages can use a folder ``photos/``, the file
``my_model.safetensors``, the checkpoints ``epoch1.pth`` and ``epoch90.pth`` of ResNet-50, and checkpoints of the timm
models that they name, in the cache of the model hub.
"""

import doctest
import functools
import glob
import importlib
import itertools
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import huggingface_hub
import matplotlib.pyplot as plt
import pytest
import timm
import torch
from click.testing import CliRunner
from jaxtyping import config
from safetensors.torch import load_file, save_file
from timm.models._registry import _model_entrypoints

import repsim
from repsim.cli import main
from repsim.extractors.zoo import SEEDS
from repsim.metrics.base import Metric
from repsim.testing.examples import write_pictures
from tests.series_example import training

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
REASONS = {
    "installs": "it changes the environment, or needs the network",
    "long": "it takes minutes",
    "several processes": "it takes torchrun, or a scheduler",
    "other software": "it shows how something else is used",
    "not here": "it needs data, or hardware, that is not here",
}
SHELL = {"", "sh", "bash", "console"}
SHOWN_ONLY = {"text", "bibtex"}
COMMAND = re.compile(r"\$ |repsim |torchrun |pip |scripts/|srun |sbatch |python |pytest |git |cd |mkdir |export |apt")
FENCE = re.compile(
    r"^(?:<!-- (?P<key>[a-z ]+?)(?:: (?P<value>[^\n]*?))? -->\n)?^```(?P<lang>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "resnet50": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "vit_base_patch16_224": {"embed_dim": 24, "depth": 3, "num_heads": 3},
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 3},
}
"""Sizes of the timm models that pages name; models of the real size would take most of the time."""
REVISION = "0" * 40


@dataclass(frozen=True)
class Block:
    lang: str
    text: str
    line: int
    key: str
    value: str

    @property
    def is_example(self) -> bool:
        if self.lang in SHOWN_ONLY or self.lang.startswith("{"):
            return False
        return self.lang != "" or any(COMMAND.match(line) for line in self.text.splitlines())


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(m["lang"], m["text"], text[: m.start("lang")].count("\n") + 1, m["key"] or "", m["value"] or "")
        for m in FENCE.finditer(text)
    ]


TESTED_ELSEWHERE = {"metrics"}
"""Pages with examples from docstrings (tests/scripts/test_metrics_docs.py), which run as doctests."""
EXAMPLES = [
    page
    for page in [*PAGES, *RECIPES]
    if page.stem not in TESTED_ELSEWHERE and any(block.is_example for block in blocks(page))
]


# Files that the pages use


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{('cats', 'dogs')[i % 2]}/{i}.png" for i in range(14)]
    return write_pictures(tmp_path_factory.mktemp("given") / "photos", names)


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "acts"
    for name in (f"digits_{kind}.seed{seed}" for kind in ("resnet", "vit") for seed in SEEDS[:2]):
        repsim.extract(name, "digits", folder, split="test", limit=40, layers="stages").close()
    return folder


@pytest.fixture(scope="module")
def demo(acts: Path) -> Path:
    """Make files with the names of `repsim demo`, from fewer samples."""
    folder = acts.parent / "demo"
    stores = sorted(acts.glob("*.h5"))
    for name, (a, b) in {"resnet_seed0_vs_seed1": (0, 1), "resnet_vs_vit": (0, 2)}.items():
        repsim.save_result(repsim.compare(stores[a], stores[b], ["cka", "svcca"]), folder / f"{name}.nc")
    study = repsim.universality(
        stores, ["cka", "mutual_knn"], controls="untrained:1", controls_folder=folder / "controls", permutations=19
    )
    repsim.save_result(study, folder / "study.nc")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a cache of the model hub with random checkpoints, from which timm loads them."""
    cache = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SMALL.items():
            build = timm.model_entrypoint(name)
            patch.setitem(_model_entrypoints, name, functools.wraps(build)(functools.partial(build, **size)))
            repository = cache / "models--{}".format(timm.get_pretrained_cfg(name).hf_hub_id.replace("/", "--"))
            for file in ("refs/main", f"snapshots/{REVISION}/model.safetensors"):
                (repository / file).parent.mkdir(parents=True)
            (repository / "refs/main").write_text(REVISION)
            save_file(timm.create_model(name).state_dict(), repository / f"snapshots/{REVISION}/model.safetensors")
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        yield cache


@pytest.fixture
def folder(
    tmp_path: Path, photos: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., None]
) -> Iterator[Path]:
    """Make the working folder of a page, and undo its registrations, imports and plots afterwards."""
    shutil.copytree(photos, tmp_path / "photos")
    pairs = [
        {"id": path.name, "image": str(path.relative_to(tmp_path)), "text": f"a photo of {path.parent.name}"}
        for path in sorted((tmp_path / "photos").glob("*/*"))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    (tmp_path / "captions.txt").write_text("".join(f"{pair['text']}\n" for pair in pairs))
    weights = next(hub.glob("*--resnet50.*/snapshots/*/*"))
    (tmp_path / "my_model.safetensors").symlink_to(weights)
    state = load_file(weights)
    for epoch in (1, 90):
        torch.save({"state_dict": state, "state_dict_ema": state, "epoch": epoch}, tmp_path / f"epoch{epoch}.pth")
    monkeypatch.chdir(tmp_path)
    tuned(map_draws=5)  # these draws and halvings take most of the time of a small study
    tuned(halvings=2)
    config.update("jaxtyping_disable", True)  # other tests check shapes
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    repsim.metrics.names()  # registers all measures of repsim
    measures, modules = dict(Metric.registry), set(sys.modules)
    yield tmp_path
    config.update("jaxtyping_disable", False)
    plt.close("all")
    Metric.registry.clear()
    Metric.registry.update(measures)
    repsim.metrics._load.cache_clear()
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


# Running blocks


def run_shell(text: str, page: "Page") -> None:
    """Run every command of a block, and compare the output that a ``console`` block shows."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    shows = any(line.startswith("$ ") for line in lines)
    while lines:
        line = lines.pop(0)
        if not shows or line.startswith("$ "):
            wanted = []
            while shows and lines and not lines[0].startswith("$ "):
                wanted.append(lines.pop(0))
            output = run_command(line.removeprefix("$ "), page)
            if wanted:
                compare_output("\n".join(wanted), output, f"{page.path.name}: {line}")


def run_command(line: str, page: "Page") -> str:
    words = shlex.split(line, comments=True)
    if not words:
        return ""
    words = [name for word in words for name in expand_glob(word, line)]
    assert words[0] in COMMANDS, f"{page.path.name}: cannot run {line!r}; mark its block: <!-- not run: ... -->"
    if words[-2:-1] == [">"]:
        Path(words[-1]).write_text(COMMANDS[words[0]](words[1:-2], page))
        return ""
    return COMMANDS[words[0]](words[1:], page)


def expand_glob(word: str, line: str) -> list[str]:
    """Expand a glob as a shell does."""
    quoted = f"'{word}'" in line or f'"{word}"' in line
    return [word] if quoted else sorted(glob.glob(word)) or [word]  # noqa: PTH207 - relative paths, as in a shell


def run_repsim(words: list[str], page: "Page") -> str:
    repsim.metrics._load.cache_clear()  # a package may have been installed meanwhile
    words = [*words, *(word for pair in LIGHT.get(words[0], {}).items() if pair[0] not in words for word in pair)]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, f"{page.path.name}: repsim {shlex.join(words)} says: {done.output}"
    return done.stdout


def run_pip(words: list[str], page: "Page") -> str:
    """Write the metadata that ``pip install -e .`` writes, without a network."""
    assert words == ["install", "-e", "."], page.path.name
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    folder = Path(f"{table['name'].replace('-', '_')}-{table['version']}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {table['name']}\nVersion: {table['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in table["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("\n\n".join(groups))
    importlib.invalidate_caches()
    return ""


def run_pytest(words: list[str], page: "Page") -> str:
    code = pytest.main(["-q", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider", "-p", "no:xdist", *words])
    assert code == 0, f"{page.path.name}: pytest {shlex.join(words)} fails"
    return ""


def run_python(words: list[str], page: "Page") -> str:
    assert len(words) == 1, page.path.name
    exec(compile(Path(words[0]).read_text(), words[0], "exec"), {"__name__": "__main__"})  # noqa: S102 - ours
    return ""


LIGHT = {"extract": {"--limit": "40"}, "universality": {"--permutations": "19", "-m": "cka"}}
"""Options added to commands that do not set them, to reduce the work."""

COMMANDS: dict[str, Callable[[list[str], "Page"], str]] = {
    "repsim": run_repsim,
    "pip": run_pip,
    "pytest": run_pytest,
    "python": run_python,
}


def compare_output(wanted: str, output: str, where: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(wanted + "\n", output, flags), (
        f"{where}\nshown:\n{wanted}\noutput:\n{output}"
    )


class Page:
    def __init__(self, path: Path, fixture: Callable[[str], Path]) -> None:
        self.path, self.fixture = path, fixture
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        where = f"{self.path.name}, line {block.line}"
        if block.key == "given":
            assert block.value in {"acts", "no acts", "demo", "study", "series"}, where
            folder = block.value.removeprefix("no ")
            shutil.rmtree(folder, ignore_errors=True)
            if folder == "study":
                shutil.copy(self.fixture("demo") / "study.nc", ".")
            elif folder == "series":
                repsim.save_result(training(every_point=True), "series.nc", overwrite=True)
            elif folder == block.value:
                shutil.copytree(self.fixture(folder), folder)
        if block.key == "not run":
            check_commands(block, where)
        elif block.key == "file":
            Path(block.value).parent.mkdir(parents=True, exist_ok=True)
            Path(block.value).write_text(block.text)
        elif block.lang == "python":
            code = compile("\n" * block.line + block.text, str(self.path), "exec")
            exec(code, self.names)  # noqa: S102 - ours
        elif block.lang == "pycon":
            self.compare(block, where)
        else:
            assert block.lang in SHELL, f"{where}: a block of {block.lang}: say what is done with it"
            run_shell(block.text, self)

    def compare(self, block: Block, where: str) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, {}, where, str(self.path), block.line)
        test.globs = self.names
        output: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        failed, tried = runner.run(test, out=output.append, clear_globs=False)
        assert tried, where
        assert not failed, "".join(output)


def check_commands(block: Block, where: str) -> None:
    """Check the reason of a block that cannot run, and that its commands and options exist."""
    assert block.value in REASONS, f"{where}: {block.value!r} is none of {sorted(REASONS)}"
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        if match := re.match(r"(?:.*-m )?(?:\$ )?repsim (?P<command>[a-z]+)(?P<rest>.*)", line):
            assert match["command"] in main.commands, f"{where}: there is no repsim {match['command']}"
            words = list(itertools.takewhile(">".__ne__, shlex.split(match["rest"], comments=True)))
            main.commands[match["command"]].make_context(match["command"], words)


@pytest.mark.parametrize("path", EXAMPLES, ids=[page.stem for page in EXAMPLES])
@pytest.mark.slow
def test_the_examples_run(path: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    page = Page(path, request.getfixturevalue)
    for block in blocks(path):
        if block.is_example:
            page.run(block)


def test_a_block_that_does_not_run_says_why() -> None:
    """Every reason is also used."""
    reasons = {
        block.value for page in EXAMPLES for block in blocks(page) if block.is_example and block.key == "not run"
    }
    assert reasons == set(REASONS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```\nrepsim compare nothing.h5\n```\n", "no such"),
        ("```\ntorchrun -m repsim compare a.h5\n```\n", "mark its block"),
        ("<!-- not run: several processes -->\n```\ntorchrun -m repsim compare a.h5 --quick\n```\n", "No such option"),
        ("<!-- not run: several processes -->\n```\ntorchrun -m repsim heat a.nc\n```\n", "there is no repsim heat"),
        ("<!-- not run: because -->\n```\nrepsim demo\n```\n", "is none of"),
        ("```pycon\n>>> 1 + 1\n3\n```\n", "Expected"),
        ("```console\n$ repsim metrics cka --json\n{}\n```\n", "shown"),
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```yaml\na: 1\n```\n", "a block of yaml"),
    ],
)
def test_the_test_bites(text: str, complaint: str, folder: Path) -> None:
    path = folder / "page.md"
    path.write_text(text)
    page = Page(path, lambda _: folder)
    (block,) = blocks(path)
    with pytest.raises((AssertionError, ZeroDivisionError, click.UsageError)) as caught:
        page.run(block)
    assert complaint in str(caught.value)


def test_links_of_the_pages_that_are_not_on_the_site() -> None:
    """Sphinx checks the links of the site."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((\.\./[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_recipes_are_listed_with_their_pictures() -> None:
    """A recipe draws the picture that it shows, and ends with what its result does not say."""
    index = (ROOT / "docs" / "recipes" / "index.md").read_text()
    for page in RECIPES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", FENCE.sub("", text)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        if page.stem != "index":
            assert f"]({page.name})" in index, page.name
            assert f"\n{page.stem}\n" in index.partition("{toctree}")[2], page.name
            assert re.findall(r"!\[.+\]\((.+)\)", text) == [f"{page.stem}.png"], page.name
            assert f'"{page.stem}.png"' in text.partition("![")[0], page.name
            assert (page.parent / f"{page.stem}.png").stat().st_size < 300_000, page.name
            assert "\n## What it does not say\n\n- " in text, page.name


def test_the_reference_names_every_public_module() -> None:
    """The names in ``__all__`` of these modules are then documented automatically."""
    page = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"automodule:: ([\w.]+)", page))
    assert documented == {
        f"repsim{part}"
        for part in ("", ".metrics", ".extractors", ".figures", ".testing", ".testing.examples", ".errors")
    }
    for module in (importlib.import_module(name) for name in documented):
        for name in getattr(module, "__all__", ()):
            assert name == "__version__" or (getattr(module, name).__doc__ or "").strip(), name
