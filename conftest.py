"""Configure pytest for tests and doctests: isolation from user settings, number of threads, fixed examples, options."""

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ["MATPLOTLIBRC"] = os.devnull  # matplotlib's own defaults, not the user's

# the networks and matrices of the tests are small: more threads would only wait for each other
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# the same examples on every machine, no time limits, and no database of examples in the working folder
reproducible = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", reproducible)
settings.register_profile("quick", settings(reproducible, max_examples=15))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options ``--all`` and ``--shuffle``."""
    parser.addoption("--all", action="store_true", help="run the slow tests, too, and more examples of properties")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in random order, drawn with this seed")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples hypothesis generates, before any test is imported."""
    settings.load_profile("thorough" if config.getoption("--all") else "quick")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return a header line with the seed, so that the same order can be run again."""
    seed = config.getoption("--shuffle")
    return None if seed is None else f"shuffled: --shuffle {seed}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect slow tests, except with ``--all``, with ``-m``, or when a test is named on the command line."""
    named = any("::" in argument for argument in config.args)
    if not (config.getoption("--all") or config.getoption("-m") or named):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    _shuffle(config, items)


def _shuffle(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle modules, then classes in modules, then tests in classes, so that shared fixtures are still made once."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        generator = random.Random(seed)  # noqa: S311
        position = {node: generator.random() for item in items for node in item.listchain()}
        items.sort(key=lambda item: [position[node] for node in item.listchain()])
