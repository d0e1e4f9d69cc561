"""The parts of `train`: the objective and its terms, setup, guards, prefetching, parallelism, monitoring and trackers.

The stages `train` and `ablate` import this package. It imports `sampling` (for grids of images), `artifacts`, `runtime`
and the libraries.
"""
