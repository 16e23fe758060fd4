"""Contracts that every measure and every extractor is tested against, ours and those of other packages."""

from repsim.testing.contracts import ExtractorContract, MetricContract

__all__ = ["ExtractorContract", "MetricContract"]
