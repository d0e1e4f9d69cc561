"""Metrics of generated images and of encoders, computed from features.

The pipeline may import this package. From the rest of the project it imports only `errors`. Its functions work on
tensors, so importing it loads torch, but no heavier library.
"""

from . import influence, spatial
from .cknna import cknna
from .detectors import Detector, Features, InceptionDetector
from .fdr import VALIDATION_FD, fdr6, relative_distances
from .frechet import frechet_distance
from .gaussian import FeatureStatistics, Gaussian, load_statistics
from .inception_score import inception_score
from .kernel import kernel_distance
from .linear_probe import linear_probe
from .manifold import DensityCoverage, PrecisionRecall, manifold_metrics, precision_recall
from .mind import mind

__all__ = [
    "VALIDATION_FD",
    "DensityCoverage",
    "Detector",
    "FeatureStatistics",
    "Features",
    "Gaussian",
    "InceptionDetector",
    "PrecisionRecall",
    "cknna",
    "fdr6",
    "frechet_distance",
    "inception_score",
    "influence",
    "kernel_distance",
    "linear_probe",
    "load_statistics",
    "manifold_metrics",
    "mind",
    "precision_recall",
    "relative_distances",
    "spatial",
]
