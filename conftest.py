"""What tests and doctests share: no settings of the user, torch's threads, no clock or chance, two options."""

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ["MATPLOTLIBRC"] = os.devnull  # matplotlib's own defaults, and not those of whoever runs the tests

# these networks and matrices are small: threads would only wait for each other. torch itself takes no more than cores
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# the same examples everywhere, however busy the machine is, and nothing left behind in the folder
calm = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", calm)
settings.register_profile("quick", settings(calm, max_examples=25))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    parser.addoption("--all", action="store_true", help="run the slow tests, too, and more examples of properties")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in another order, of this seed")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples hypothesis makes, before any test is imported."""
    settings.load_profile("thorough" if config.getoption("--all") else "quick")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show the seed, with which the order can be had again."""
    seed = config.getoption("--shuffle")
    return None if seed is None else f"shuffled: --shuffle {seed}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless all are asked for, or these: by ``-m``, or by the name of a test."""
    named = any("::" in argument for argument in config.args)
    if not (config.getoption("--all") or config.getoption("-m") or named):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    _shuffle(config, items)


def _shuffle(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the modules, the classes of each and the tests of each, so that what they share is still made once."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        places = random.Random(seed)  # noqa: S311
        drawn = {node: places.random() for item in items for node in item.listchain()}
        items.sort(key=lambda item: [drawn[node] for node in item.listchain()])
