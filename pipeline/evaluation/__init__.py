"""The parts of `evaluate` and `probe`: detector features, the cache of references, features of a model's blocks.

Only these two stages import this package. It imports `artifacts`, `runtime` and the libraries.
"""
