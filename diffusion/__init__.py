"""Diffusion between data and noise: interpolation paths, posterior sampling, training losses and samplers.

The pipeline may import this package. From the rest of the project it imports only `errors`, and importing it loads
nothing.
"""
