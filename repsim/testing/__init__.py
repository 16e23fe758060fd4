"""For tests of other packages, and for ours: contracts, small synthetic data, a state machine for writers of stores.

`MetricContract` and `ExtractorContract` are what every measure and every extractor is tested against.
`repsim.testing.examples` makes layers, stores, studies and pictures; `repsim.testing.stateful` tests store writers.
Contracts need pytest, and the state machine hypothesis as well.
"""

from repsim.testing.contracts import ExtractorContract, MetricContract

__all__ = ["ExtractorContract", "MetricContract"]
