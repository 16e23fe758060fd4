"""Test measures, extractors and store writers, in repsim and in other packages.

`MetricContract` and `ExtractorContract` are base classes for the tests of every measure and every extractor.
`repsim.testing.examples` generates layers, stores, studies and pictures; `repsim.testing.stateful` tests store writers.
The contracts need pytest, and the state machine also needs hypothesis.
"""

from repsim.testing.contracts import ExtractorContract, MetricContract

__all__ = ["ExtractorContract", "MetricContract"]
