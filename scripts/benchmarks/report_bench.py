"""`scripts/bench report`: measure how fast a report page opens and reacts in a browser, and its size."""

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
from repsim.testing.large import enlarged_study

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
    """Write a study of ten synthetic networks of four families, with all possible contents, and return its path."""
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
                stores.append(repsim.write_store(path, acts, model=name, provenance=random, overwrite=True, **options))
    study = repsim.universality(stores, ["cka", "mutual_knn"], permutations=19, draws=50)
    repsim.save_result(study, folder / "ten.nc", overwrite=True)
    return folder / "ten.nc"


def program() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None) or sys.exit(f"install one of {', '.join(names)}")


def many_models(folder: Path, count: int) -> Path:
    """Write a study of this many models of 12 layers, copies of the ten, and return its path."""
    study = repsim.open_study(ten_models(folder, layers=12))
    repsim.save_result(enlarged_study(study, count), folder / f"{count}.nc", overwrite=True)
    return folder / f"{count}.nc"


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of the extra `dev`

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS)
        yield browser
        browser.close()


def time_opening(browser: Any, page: Path) -> dict[str, float]:
    """Open the page in a browser without a debugger, and then read the times at which it was ready.

    A debugger that is attached while the page opens would slow it down.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [program(), "--headless", *ARGUMENTS, f"--user-data-dir={profile}", "--remote-debugging-port=0",
                   f"--window-size={WINDOW['width']},{WINDOW['height']}", "about:blank"]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                line = next(line for line in process.stderr if line.startswith("DevTools listening on"))
                port = line.split("127.0.0.1:")[1].split("/")[0]
                time.sleep(1)  # let the browser finish its own start
                address = f"http://127.0.0.1:{port}"
                new = urllib.request.Request(f"{address}/json/new?{page.as_uri()}", method="PUT")  # noqa: S310 - ours
                urllib.request.urlopen(new).close()  # noqa: S310 - the browser that was just started
                time.sleep(5)
                connected = browser.browser_type.connect_over_cdp(address)
                tab = next(tab for tab in connected.contexts[0].pages if tab.url == page.as_uri())
                marks = dict(tab.evaluate("performance.getEntriesByType('mark').map(x => [x.name, x.startTime])"))
            finally:
                process.terminate()
    return {"visible": marks["seen"], "interactive": marks["drawn"], "complete": marks["complete"]}


def timed(browser: Any, page: Path) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for _ in range(RUNS):
        run = time_opening(browser, page)
        context = browser.new_context(viewport=WINDOW, bypass_csp=True)  # the policy would forbid to evaluate ACTIONS
        tab = context.new_page()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        run |= {name: tab.evaluate(TIMED, act) for name, act in ACTIONS.items()}
        for name, value in run.items():
            times.setdefault(name, []).append(value)
        context.close()
    return {name: statistics.median(values) for name, values in times.items()}


def take_pictures(browser: Any, page: Path, folder: Path) -> None:
    """Write the screenshots of docs/report.md."""
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
    """Measure how fast a report page opens and reacts, and its size: the demo, and 10, 30 and 100 models.

    Times are wall-clock milliseconds in headless Chromium, medians of five runs. From the start of loading: `visible`
    until the text and the first heatmaps are on the screen, `interactive` until the heatmaps respond to the pointer,
    `complete` until the last figure is drawn. These three are measured in a browser without a debugger, as users have
    it; with a debugger, V8 parses plotly.js several times.

    \b
    scripts/bench report                                       as in docs/benchmarks.md
    scripts/bench report STUDY.nc                              other studies
    scripts/bench report --pictures docs/pictures STUDY.nc     screenshots instead of times
    """
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        folder = Path(scratch)
        if not studies:
            demo.run(folder / "demo")
            large = [many_models(folder, count) for count in (30, 100)]  # with 12 layers; writes ten.nc, too
            studies = (folder / "demo" / demo.STUDY, ten_models(folder), *large)
        for study in studies:
            page = folder / "report.html"
            repsim.write_report(study, page, overwrite=True)
            if pictures is not None:
                take_pictures(browser, page, pictures)
                continue
            times = "  ".join(f"{name} {value:5.0f}" for name, value in timed(browser, page).items())
            print(f"{study.name:12} {page.stat().st_size / 1e6:.2f} MB  {times}")
