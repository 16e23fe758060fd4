"""Algorithms that compute all pairs of many layers at once, as a sum over units that any process can do in any order.

What depends on two layers is a matrix product, and there are two ways to it. In Gram space (`gram_space`) the centred
n x n Gram matrices of all layers pass by tile after tile, and every pair's inner product grows by one product of
stacked tiles. In feature space (`feature_space`) the p x q cross-moments X'Y of every pair grow by a run of samples at
a time. Either gives the exact value, in memory that does not grow with n; `repsim.engine.planning` chooses the cheaper
one. Measures that know neither are compared pair by pair (`pair_by_pair`).

A unit is a pure function of the layers. So processes can share the units, and an interrupted run needs only those that
are missing: the sum, always taken in the same order, is the same to the bit.

The package lies below the measures and not in the engine, because comparing two arrays in memory (`Metric.block`) runs
the same algorithms as comparing a thousand layers in files.
"""
