"""Linear probing: the accuracy of a linear classifier on features."""

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .arrays import Array, as_features, as_tensor, check_same_width, full_float32


def linear_probe(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    weight_decay: float = 1e-3,
    max_iterations: int = 200,
) -> float:
    """Return the accuracy on test features of a linear classifier fitted to training features.

    Features are standardized by the training set's mean and standard deviation, like the parameter-free batch norm
    before the classifier in MAE's protocol (He et al. 2022, arXiv 2111.06377), which REPA follows. Unlike their 90
    epochs of SGD, the classifier is fitted to convergence by L-BFGS, from zero and on all features at once, which needs
    no learning rate and no seed. Rankings are comparable with published ones; values are comparable only with each
    other. Runs in float32 on the training features' device.

    Args:
        train_features: [N, D].
        train_labels: [N], integers from 0.
        test_features: [M, D].
        test_labels: [M].
        weight_decay: the loss is mean cross-entropy + weight_decay / 2 * |W|^2.
        max_iterations: limit of L-BFGS iterations.

    Returns:
        The fraction of test features whose label is predicted correctly.

    Raises:
        ConfigError: shapes do not match.
    """
    train, test = as_features(train_features, "train_features"), as_features(test_features, "test_features")
    check_same_width(train, test, "train_features and test_features")
    device = train.device
    targets, expected = (as_tensor(labels).to(device, torch.int64) for labels in (train_labels, test_labels))
    for name, features, labels in (("train", train, targets), ("test", test, expected)):
        if labels.shape != features.shape[:1]:
            raise ConfigError(
                f"{name}: {len(features)} features and labels of shape {list(labels.shape)}; expected one label each"
            )
    mean, deviation = train.float().mean(0), train.float().std(0, correction=0)
    scale = 1 / deviation.clamp(min=1e-6)
    with full_float32():
        weight, bias = _fit((train.float() - mean) * scale, targets, weight_decay, max_iterations)
        scores = (test.to(device).float() - mean) * scale @ weight + bias
    return (scores.argmax(1) == expected).double().mean().item()


@torch.enable_grad()
def _fit(inputs: Tensor, targets: Tensor, weight_decay: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    classes = int(targets.max()) + 1
    weight = torch.zeros(inputs.shape[1], classes, device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(inputs @ weight + bias, targets) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
