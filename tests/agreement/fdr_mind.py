"""FDr and MIND of several extractors, inception scores of two evaluators, and the Fréchet distance as training loss.

What no command uses, the random splits of inception scores and the distance as a loss of a batch, is put together here
from the functions that commands do use.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import torch
from case import Case, Figures
from torch import Tensor

from repa_pipe.metrics import (
    FeatureStatistics,
    fdr6,
    frechet_distance,
    inception_score,
    mind,
    relative_distances,
)
from repa_pipe.metrics.frechet import squared_distance
from repa_pipe.metrics.mind import kept_rows, unit_directions

__all__ = ["compute", "is_input", "recognizes"]
SPLITS, EVALUATOR_SEED, FDLOSS_SEED = 10, 0, 2020  # of inception scores, as published
DIRECTIONS = "mind_case_directions_first_"


def recognizes(case: Case) -> bool:
    return "mind_case" in case.config and "extractors" in case.config


def is_input(_case: Case, name: str) -> bool:
    return name == "logits" or name.startswith(("gen_", "ref_"))


def compute(case: Case) -> Figures:
    return _distances(case) | _mind_cases(case) | _inception_scores(case) | _losses(case)


def _distances(case: Case) -> Figures:
    seed, projections = case.config["mind_seed"], case.config["mind_projections"]
    validation = {name: constant for name, (_, constant) in case.config["extractors"].items()}
    pairs = {name: (case[f"ref_{name}"], case[f"gen_{name}"]) for name in validation}
    found = {name: frechet_distance(*_moments(reference), *_moments(own)) for name, (reference, own) in pairs.items()}
    without_one = dict(list(found.items())[1:])
    return {
        "fd": list(found.values()),
        "validation_fd": list(validation.values()),
        "fdr": list(relative_distances(found, validation).values()),
        "fdr6": fdr6(found, validation),
        "fdr6_is_absent_when_one_extractor_is_missing": fdr6(without_one, validation) is None,
        "mind": [mind(*pair, projections=projections, seed=seed) for pair in pairs.values()],
    }


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics.mean, statistics.covariance


def _mind_cases(case: Case) -> Figures:
    projections, seed = case.config["mind_projections"], case.config["mind_seed"]
    reference, own = (case[f"{side}_{case.config['mind_case']}"] for side in ("ref", "gen"))
    fewest, most = sorted((len(reference), len(own)))
    draw = {"projections": projections, "seed": seed}
    generator = torch.Generator().manual_seed(seed)
    figures: Figures = {
        "mind_case_equal_sizes": mind(reference[:fewest], own[:fewest], **draw),
        "mind_case_swapped": mind(own, reference, **draw),
        "mind_case_self": mind(own, own, **draw),
        "mind_case_shift_by_1_equal_sizes": mind(own + 1, own, **draw),
    }
    if fewest < most:
        figures["mind_case_kept_rows_of_the_larger_set"] = kept_rows(fewest, most, generator)
    directions = unit_directions(projections, own.shape[1], generator)
    for name in case.matching(f"{DIRECTIONS}\\d+"):
        figures[name] = directions[: int(name.removeprefix(DIRECTIONS))]
    for name in case.matching(r"mind_case_seed\d+_projections\d+"):
        seed, projections = map(int, re.findall(r"\d+", name))
        figures[name] = mind(reference, own, projections, seed)
    return figures


def _inception_scores(case: Case) -> Figures:
    probabilities = case["logits"].double().softmax(1)
    count = len(probabilities)
    shuffled = probabilities[np.random.RandomState(EVALUATOR_SEED).permutation(count)]
    size = count // SPLITS
    figures: Figures = {"inception_score_evaluator": inception_score(shuffled[: size * SPLITS], size)}
    shuffled = probabilities[np.random.RandomState(FDLOSS_SEED).permutation(count)]
    bounds = [i * count // SPLITS for i in range(SPLITS + 1)]
    scores = [inception_score(shuffled[a:b], b - a) for a, b in itertools.pairwise(bounds)]
    return figures | {"inception_score_fdloss": np.mean(scores), "inception_score_fdloss_std": np.std(scores)}


def _losses(case: Case) -> Figures:
    """Compute the Fréchet distance of the population that a batch belongs to, and its gradient by the batch."""
    beta, count = case.config["ema_beta"], case.config["loss_batch"]
    reference, own = (case[f"{side}_{case.config['loss_case']}"] for side in ("ref", "gen"))
    target = _moments(reference)
    batch = own[:count].double().requires_grad_()
    queue = own[-case.config["queue_size"] :].double()
    population = torch.cat([batch, queue[count:]])  # the batch replaces the oldest rows
    by_queue = squared_distance(*target, population.mean(0), torch.cov(population.T))
    mean = beta * queue.mean(0) + (1 - beta) * batch.mean(0)
    second_moment = beta * queue.T @ queue / len(queue) + (1 - beta) * batch.T @ batch / count
    by_average = squared_distance(*target, mean, second_moment - torch.outer(mean, mean))
    return {
        "fdloss_queue": by_queue,
        "fdloss_queue_gradient": torch.autograd.grad(by_queue, batch)[0],
        "fdloss_ema": by_average,
        "fdloss_ema_gradient": torch.autograd.grad(by_average, batch)[0],
        "fdloss_ema_mean_after": mean,
    }
