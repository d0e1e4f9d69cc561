"""Measure time and memory of FID, precision and recall from features: ours, plain numpy and scipy, torch-fidelity.

    pip install 'repa-pipe[fid]'                              # torch-fidelity; its rows are skipped without it
    python benchmarks/evaluate_features.py                    # 50,000 x 2,048: an hour on 2 cores
    python benchmarks/evaluate_features.py --count 5000       # a minute or two
    python benchmarks/evaluate_features.py --device cuda      # ours on a GPU, the others on the CPU

Every run is a separate process. Memory is the growth of its peak after the features were created. The features are
synthetic: positive, skewed, with a spectrum that decays like Inception's.
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
from arguments import at_least
from scipy.linalg import sqrtm

from repa_pipe import metrics

try:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part
except ImportError:
    HAS_TORCH_FIDELITY = False
else:
    HAS_TORCH_FIDELITY = True


def make_features(count: int, width: int, seed: int) -> np.ndarray:
    """Return features `[count, width]` float32, created without a second copy."""
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
    """Follow the ADM suite: 10,000 rows at a time against all columns, in float32."""

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


FULL_MATRICES = partial(pr_torch_fidelity, save_memory=False)
METRICS: dict[str, dict[str, Callable]] = {
    "FID": {"ours": fid_ours, "numpy + scipy sqrtm": fid_scipy, "torch-fidelity": fid_torch_fidelity},
    "precision, recall": {
        "ours": pr_ours,
        "numpy, 10,000 rows at a time": pr_numpy,
        "torch-fidelity": FULL_MATRICES,
        "torch-fidelity, save_cpu_ram": partial(pr_torch_fidelity, save_memory=True),
    },
}


def measure(function: Callable, options: argparse.Namespace, result) -> None:
    """Put (value, seconds, CPU seconds, MiB) on the queue `result`. Runs in a child process."""
    torch.set_num_threads(options.threads)
    reference, samples = (make_features(options.count, options.width, seed) for seed in (0, 1))
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.zeros(1, device=options.device)  # starts CUDA, which is not measured
        torch.cuda.reset_peak_memory_stats()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    value = function(reference, samples, options.device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024
    result.put((value, seconds, cpu_seconds, (on_gpu and torch.cuda.max_memory_allocated() / 2**20) or grown))


def measure_in_process(function: Callable, options: argparse.Namespace) -> tuple | None:
    """Return the result of `measure`, or None if its process died, for example because memory ran out."""
    context = multiprocessing.get_context("spawn")
    result = context.SimpleQueue()
    child = context.Process(target=measure, args=(function, options, result))
    child.start()
    child.join()
    return result.get() if child.exitcode == 0 else None


def row(function: Callable, options: argparse.Namespace, ours: list[float]) -> tuple[str, list[float]]:
    """Return one line of the table and its medians: seconds, CPU seconds, MiB."""
    runs = [measure_in_process(function, options) for _ in range(options.repeats)]
    if None in runs:
        return "process died", []
    medians = [statistics.median(run[i] for run in runs) for i in (1, 2, 3)]
    columns = [
        f"{number:>9,.{digits}f} {number / max(own, 1e-9):>6.2f}"
        for number, own, digits in zip(medians, ours or medians, (2, 2, 0), strict=True)
    ]
    return "".join(columns) + "   " + ", ".join(f"{number:.6f}" for number in np.atleast_1d(runs[0][0])), medians


def reason_to_skip(name: str, function: Callable, count: int) -> str | None:
    """Return why a function cannot run here, or None if it can."""
    if name.startswith("torch-fidelity") and not HAS_TORCH_FIDELITY:
        return "torch-fidelity is not installed"
    matrices = 3 * 4 * count**2  # bytes that torch-fidelity's fast method allocates
    if function is FULL_MATRICES and matrices > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return f"needs {matrices / 2**30:,.0f} GiB of memory"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=at_least(2), default=50_000, help="features per side")
    parser.add_argument("--width", type=int, default=2048, help="width of the features")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="processes per row; the table shows medians")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="device of our implementation")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # read by the children

    print(f"{options.count:,} x {options.width:,} features per side, {options.threads} thread(s)")
    header = "".join(f"{name:>9} {'x ours':>6}" for name in ("seconds", "CPU s", "MiB"))
    print(f"{f'ours on {options.device}':<32}{header}   value")
    for metric, functions in METRICS.items():
        print(metric)
        ours: list[float] = []
        for name, function in functions.items():
            reason = reason_to_skip(name, function, options.count)
            if reason:
                print(f"  {name:<30}skipped: {reason}")
                continue
            text, measured = row(function, options, ours)
            ours = ours or measured
            print(f"  {name:<30}{text}", flush=True)


if __name__ == "__main__":
    main()
