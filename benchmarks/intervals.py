"""Measure what 95% intervals of metrics cost, and compare that of the Fréchet distance with a bootstrap.

    python benchmarks/intervals.py [--images 10000] [--width 2048] [--draws 20]

Prints the seconds of every metric and of its terms (`evaluate --intervals`) on random features. For the Fréchet
distance of features of a sixteenth of the width, it also prints the interval of a bootstrap that computes the distance
of every draw, and by how much the draws are biased.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from arguments import at_least
from torch import Tensor

from repa_pipe import metrics
from repa_pipe.metrics import FeatureStatistics, Gaussian, influence


def features(seed: int, count: int, width: int) -> Tensor:
    """Return correlated features whose variances fall as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, 4, width).neg().exp()
    return torch.randn(count, width, generator=generator) * scales + 0.1 * torch.randn(count, 1, generator=generator)


def gaussian(rows: Tensor) -> Gaussian:
    statistics = FeatureStatistics(rows.shape[1])
    statistics.update(rows)
    return statistics.gaussian()


def distance(one: Gaussian, other: Gaussian) -> float:
    return metrics.frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bootstrap(reference: Tensor, samples: Tensor, draws: int) -> tuple[float, float]:
    """Return half the width of the 95% interval of the draws' distances, and their mean minus the distance."""
    against, rng = gaussian(reference), np.random.default_rng(0)
    rows = [torch.from_numpy(rng.integers(0, len(samples), len(samples))) for _ in range(draws)]
    found = [distance(against, gaussian(samples[each])) for each in rows]
    return 1.96 * float(np.std(found, ddof=1)), float(np.mean(found)) - distance(against, gaussian(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least(100), default=10_000, help="images on each side (default: 10000)")
    parser.add_argument("--width", type=at_least(16), default=2048, help="features per image (default: 2048)")
    parser.add_argument("--draws", type=at_least(2), default=20, help="draws of the bootstrap (default: 20)")
    args = parser.parse_args()
    reference, samples = features(0, args.images, args.width), 1.1 * features(1, args.images, args.width)
    one, own = gaussian(reference), gaussian(samples)
    probabilities = samples[:, : min(1008, args.width)].softmax(1)
    rows = {
        "Fréchet distance, with statistics": (
            lambda: distance(gaussian(reference), gaussian(samples)),
            lambda: influence.frechet_terms(samples, own, one),
        ),
        "kernel distance": (
            lambda: metrics.kernel_distance(reference, samples),
            lambda: influence.kernel_terms(reference, samples),
        ),
        "MIND": (lambda: metrics.mind(reference, samples), lambda: influence.mind_terms(reference, samples)),
        "inception score": (
            lambda: metrics.inception_score(probabilities),
            lambda: influence.inception_terms(probabilities),
        ),
        "precision, recall": (lambda: metrics.precision_recall(reference, samples), None),
        "precision, recall, density, coverage": (lambda: metrics.manifold_metrics(reference, samples), None),
    }
    for name, (metric, terms) in rows.items():
        print(f"{name}: {seconds(metric):.1f} s" + (f", its interval {seconds(terms):.1f} s" if terms else ""))
    reference, samples = (each[:, ::16].contiguous() for each in (reference, samples))
    margin = influence.margin(influence.frechet_terms(samples, gaussian(samples), gaussian(reference)))
    expected, bias = bootstrap(reference, samples, args.draws)
    print(
        f"interval of the distance of {reference.shape[1]} features: ± {margin:.4f}, by {args.draws} draws of a "
        f"bootstrap ± {expected:.4f}; these draws are {bias:+.4f} from the distance"
    )


if __name__ == "__main__":
    main()
