"""The layers that the diffusion transformers share. Attribute names are those of the published checkpoints.

Only the models import this package.
"""
