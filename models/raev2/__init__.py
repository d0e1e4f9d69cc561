"""RAEv2's diffusion transformer, which predicts data and guides itself (arXiv 2605.18324).

Only the pipeline may import this package.
"""
