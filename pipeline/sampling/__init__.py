"""The parts of `sample`: the sampler, blocks of images on disk, and the runner on Ray.

The stage `sample` and the package `training` (for grids of images) import this package. It imports `artifacts`,
`runtime` and the libraries.
"""
