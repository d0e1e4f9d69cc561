"""Artifacts that stages pass to each other: run folders, checkpoints, generated images, metrics.

Every file name has one owner here. All stages and their packages may import this package. It imports `runtime` and the
libraries.
"""
