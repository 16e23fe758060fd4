"""`scripts/bench report`: how fast a report page opens and reacts in a browser, and its size."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

import repsim
from repsim import demo

RUNS = 5
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WINDOW = {"width": 1280, "height": 900}
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
TIMED = f"""async act => {{
  const start = performance.now();
  new Function(act)();
  await {FRAME};
  return performance.now() - start;
}}"""
ACTIONS = {
    "measure": "const x = document.getElementById('measure'); x.selectedIndex = (x.selectedIndex + 1) % x.length; "
    "x.dispatchEvent(new Event('change'))",
    "view": "const x = document.querySelector('#view input:not(:checked):enabled'); x.click()",
    "pair": "const x = [...document.querySelectorAll('#pairs-table tbody button')]; "
    "x[Math.floor(x.length / 2)].click()",
    "path": "const x = document.getElementById('step'); x.value = Number(x.value) + 1; "
    "x.dispatchEvent(new Event('input'))",
}


def ten_models(folder: Path, layers: int = 15, n: int = 120) -> Path:
    """A study of ten made-up networks of four families, with everything that a study can have."""
    rng = np.random.default_rng(0)
    pixels, common = rng.normal(size=(n, 3, 4, 4)), rng.normal(size=(n, 12))
    stores = []
    for family, seeds in {"alpha": 3, "beta": 3, "gamma": 2, "delta": 2}.items():
        own = rng.normal(size=(n, 8))
        for seed in range(seeds):
            twin = [(f"{family}+random-seed0", 0.0)] if not seed else []
            for name, learned in ((f"{family}.seed{seed}", 1.0), *twin):
                acts = {}
                for k in range(layers):
                    t = k / (layers - 1)
                    parts = [pixels.reshape(n, -1) * (1 - t), learned * t * common, learned * t * own]
                    x = np.hstack([*parts, rng.normal(size=(n, 10))])
                    acts[f"blocks.{k}"] = (x @ rng.normal(size=(x.shape[1], 48))).astype(np.float32)
                random = {"weights": "random", "architecture": family} if "+" in name else None
                options: dict[str, Any] = {"pixels": pixels.astype(np.float32), "labels": np.arange(n) % 10}
                path = folder / f"{name}.h5"
                stores.append(repsim.write_store(path, acts, model=name, provenance=random, **options))
    study = repsim.universality(stores, ["cka", "mutual_knn"], permutations=19, draws=50)
    repsim.save_result(study, folder / "ten.nc")
    return folder / "ten.nc"


def program() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None) or sys.exit(f"install one of {', '.join(names)}")


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of the extra `dev`

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser: Any, page: Path) -> dict[str, float]:
    """Opens the page alone, and asks it only afterwards when it was ready."""
    with tempfile.TemporaryDirectory() as profile:
        command = [program(), "--headless", *ARGUMENTS, f"--user-data-dir={profile}", "--remote-debugging-port=0",
                   f"--window-size={WINDOW['width']},{WINDOW['height']}", "about:blank"]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                line = next(line for line in process.stderr if line.startswith("DevTools listening on"))
                port = line.split("127.0.0.1:")[1].split("/")[0]
                time.sleep(1)  # a browser that has just started has other things to do
                address = f"http://127.0.0.1:{port}"
                new = urllib.request.Request(f"{address}/json/new?{page.as_uri()}", method="PUT")  # noqa: S310 - ours
                urllib.request.urlopen(new).close()  # noqa: S310 - the browser that was just started
                time.sleep(5)
                there = browser.browser_type.connect_over_cdp(address)
                tab = next(tab for tab in there.contexts[0].pages if tab.url == page.as_uri())
                marks = dict(tab.evaluate("performance.getEntriesByType('mark').map(x => [x.name, x.startTime])"))
            finally:
                process.terminate()
    return {"open": marks["seen"], "live": marks["drawn"], "all": marks["complete"]}


def timed(browser: Any, page: Path) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for _ in range(RUNS):
        once = opened(browser, page)
        context = browser.new_context(viewport=WINDOW, bypass_csp=True)  # so that the actions above may be evaluated
        tab = context.new_page()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        once |= {name: tab.evaluate(TIMED, act) for name, act in ACTIONS.items()}
        for name, value in once.items():
            found.setdefault(name, []).append(value)
        context.close()
    return {name: statistics.median(values) for name, values in found.items()}


def take_pictures(browser: Any, page: Path, folder: Path) -> None:
    """The screenshots of docs/report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    link = "#measure=cka+given+input"
    for theme, (first, last) in {"light": ("layers", "details-facts"), "dark": ("maps", "stimuli")}.items():
        context = browser.new_context(viewport=WINDOW, color_scheme=theme)
        tab = context.new_page()
        tab.goto(page.as_uri() + link)
        tab.wait_for_selector("html[data-ready]", state="attached")
        corners = "ids => ids.map(x => document.getElementById(x).getBoundingClientRect().toJSON())"
        top, bottom = tab.evaluate(corners, [first, last])
        end = bottom["bottom"] if theme == "light" else bottom["top"]
        clip = {"x": 0, "y": top["top"], "width": WINDOW["width"], "height": end - top["top"]}
        tab.screenshot(path=folder / f"report-{first}.png", clip=clip, full_page=True)
        context.close()


@click.command()
@click.argument("studies", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[STUDY]...")
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the screenshots of docs/report.md into this folder instead.",
)
def report(studies: tuple[Path, ...], pictures: Path | None) -> None:
    """How fast a report page opens and reacts, and its size: of the demo, and of ten models of 15 layers.

    Times are wall-clock milliseconds in headless Chromium, the median of some runs, until the picture is on the
    screen: from the start of loading `open` to the text and the first heatmaps, `live` until they answer, `all` to the
    last figure. These three are taken in a browser that nobody debugs, as a reader's is: for a debugger V8 reads
    plotly.js again and again.

    \b
    scripts/bench report                                       as in docs/benchmarks.md
    scripts/bench report STUDY.nc                              of other studies
    scripts/bench report --pictures docs/pictures STUDY.nc     pictures of it instead
    """
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        folder = Path(scratch)
        if not studies:
            demo.run(folder / "demo")
            studies = (folder / "demo" / demo.STUDY, ten_models(folder))
        for study in studies:
            page = folder / "report.html"
            repsim.write_report(study, page, overwrite=True)
            if pictures is not None:
                take_pictures(browser, page, pictures)
                continue
            times = "  ".join(f"{name} {value:5.0f}" for name, value in timed(browser, page).items())
            print(f"{study.name:12} {page.stat().st_size / 1e6:.2f} MB  {times}")
