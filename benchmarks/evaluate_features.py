"""Time and memory of FID, precision and recall from features: ours, plain numpy and scipy, torch-fidelity.

    pip install 'repa-pipe[fid]'
    python benchmarks/evaluate_features.py                    # 50,000 x 2,048: an hour on 2 cores
    python benchmarks/evaluate_features.py --count 5000       # a minute or two
    python benchmarks/evaluate_features.py --device cuda      # ours on a GPU, the others where they run

Every run is a process of its own. Memory is what its peak grew by once the features were there. Features are made up:
positive, skewed, with a spectrum that decays as Inception's does.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part

from repa_pipe import metrics


def make_features(count: int, width: int, seed: int) -> np.ndarray:
    """Features [count, width] float32, made without a second copy."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((count, width), dtype=np.float32)
    common = np.random.default_rng(99).standard_normal((16, width), dtype=np.float32)
    for start in range(0, count, 1000):
        rows = features[start : start + 1000]
        rows += generator.standard_normal((len(rows), 16), dtype=np.float32) @ common * (0.5 + 0.02 * seed)
        np.maximum(rows, -0.5, out=rows)
        rows *= 0.3
    return features


def fid_ours(reference, samples, device):
    sides = []
    for features in (reference, samples):
        side = metrics.FeatureStatistics(features.shape[1], device)
        side.update(torch.from_numpy(features).to(device))
        sides += [side.mean, side.covariance]
    return metrics.frechet_distance(*sides)


def fid_scipy(reference, samples, _device):
    (mu1, sigma1), (mu2, sigma2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (reference, samples))
    root = np.trace(sqrtm(sigma1 @ sigma2)).real
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root)


def fid_torch_fidelity(reference, samples, _device):
    sides = [fid_features_to_statistics(torch.from_numpy(x)) for x in (reference, samples)]
    return fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


def pr_ours(reference, samples, device):
    return tuple(metrics.precision_recall(*(torch.from_numpy(x).to(device) for x in (reference, samples))))


def pr_numpy(reference, samples, _device):
    """The ADM suite's procedure, 10,000 rows at a time against everything, in float32."""

    def distances(rows, columns):
        squares = (rows**2).sum(1)[:, None] - 2 * rows @ columns.T + (columns**2).sum(1)
        return np.maximum(squares, 0)

    def batches(x):
        return [x[i : i + 10_000] for i in range(0, len(x), 10_000)]

    def radii(x):
        return np.concatenate([np.partition(distances(rows, x), 3, axis=1)[:, 3] for rows in batches(x)])

    def inside(x, centers):
        bounds = radii(centers)
        return float(np.concatenate([(distances(rows, centers) <= bounds).any(1) for rows in batches(x)]).mean())

    return inside(samples, reference), inside(reference, samples)


def pr_torch_fidelity(reference, samples, _device, save_memory):
    function = calculate_precision_recall_part if save_memory else calculate_precision_recall_full
    return function(torch.from_numpy(samples), torch.from_numpy(reference))


WHOLE_MATRICES = partial(pr_torch_fidelity, save_memory=False)
FIGURES: dict[str, dict[str, Callable]] = {
    "FID": {"ours": fid_ours, "numpy + scipy sqrtm": fid_scipy, "torch-fidelity": fid_torch_fidelity},
    "precision, recall": {
        "ours": pr_ours,
        "numpy, 10,000 rows at a time": pr_numpy,
        "torch-fidelity": WHOLE_MATRICES,
        "torch-fidelity, save_cpu_ram": partial(pr_torch_fidelity, save_memory=True),
    },
}


def measure(function: Callable, options: argparse.Namespace, answer) -> None:
    """Run in a child process: put (value, seconds, CPU seconds, MiB) on the queue."""
    torch.set_num_threads(options.threads)
    reference, samples = (make_features(options.count, options.width, seed) for seed in (0, 1))
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.zeros(1, device=options.device)  # the start-up of CUDA is not the metric's time
        torch.cuda.reset_peak_memory_stats()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    value = function(reference, samples, options.device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    answer.put((value, seconds, cpu_seconds, (on_gpu and torch.cuda.max_memory_allocated() / 2**20) or grown))


def in_a_process(function: Callable, options: argparse.Namespace) -> tuple | None:
    """What `measure` answers, or None if its process died, of want of memory for instance."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=measure, args=(function, options, answer))
    child.start()
    child.join()
    return answer.get() if child.exitcode == 0 else None


def row(function: Callable, options: argparse.Namespace, ours: list[float]) -> tuple[str, list[float]]:
    """One line of the table, and the medians in it: seconds, CPU seconds, MiB."""
    runs = [in_a_process(function, options) for _ in range(options.repeats)]
    if None in runs:
        return "its process died", []
    medians = [statistics.median(run[i] for run in runs) for i in (1, 2, 3)]
    columns = [
        f"{number:>9,.{digits}f} {number / max(own, 1e-9):>6.2f}"
        for number, own, digits in zip(medians, ours or medians, (2, 2, 0), strict=True)
    ]
    return "".join(columns) + "   " + ", ".join(f"{number:.6f}" for number in np.atleast_1d(runs[0][0])), medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="features on each side")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each row; the table shows medians")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", help="where ours runs")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # the children read them

    print(f"{options.count:,} x {options.width:,} features on each side, {options.threads} thread(s)")
    header = "".join(f"{name:>9} {'x ours':>6}" for name in ("seconds", "CPU s", "MiB"))
    print(f"{f'ours on {options.device}':<32}{header}   value")
    matrices = 3 * 4 * options.count**2  # what torch-fidelity's fast way holds
    for figure, functions in FIGURES.items():
        print(figure)
        ours: list[float] = []
        for name, function in functions.items():
            if function is WHOLE_MATRICES and matrices > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
                print(f"  {name:<30}not run: no room for {matrices / 2**30:,.0f} GiB")
                continue
            text, measured = row(function, options, ours)
            ours = ours or measured
            print(f"  {name:<30}{text}", flush=True)


if __name__ == "__main__":
    main()
