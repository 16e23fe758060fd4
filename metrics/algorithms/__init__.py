"""Algorithms that compute all pairs of many layers as a sum over units, which processes compute in any order.

There are two ways to compute many pairs by matrix products. In Gram space (`gram_space`), the centred n x n Gram
matrices of all layers are computed tile by tile, and one product of stacked tiles adds to the inner products of all
pairs. In feature space (`feature_space`), the p x q cross-moments X'Y of every pair are summed over runs of samples.
Both give the exact value, in memory that does not grow with n; `repsim.engine.planning` chooses the cheaper one.
Measures that support neither are compared pair by pair (`pair_by_pair`).

A unit is a pure function of the layers. So processes can share the units, and an interrupted run computes only the
missing ones. The sum is always taken in the same order, so the result is the same to the bit.

The package is below the measures and not in the engine, because comparing two arrays in memory (`Metric.block`) uses
the same algorithms as comparing a thousand layers in files.
"""
