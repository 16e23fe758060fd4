"""Quick runs test one spec of each measure against the contract; further specs of a measure are slow tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the contract tests of all specs of a measure except the first."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        specs = getattr(getattr(item, "cls", None), "metrics", ())
        if specs and parameters.get("metric", specs[0]) != specs[0]:
            item.add_marker(pytest.mark.slow)
