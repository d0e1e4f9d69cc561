"""Contents of the HTML report, and the plots of `probe`, `rank` and `evaluate-checkpoints`.

These stages, `ablate` and its package import this package. It imports `artifacts`, `runtime` and the libraries.
"""
