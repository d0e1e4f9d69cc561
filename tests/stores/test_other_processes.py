"""Batches that are read by other processes: DataLoader workers, and the dataset's reading process."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.stores import AlignmentDataset, MapStyleDataset, open_store, reading_process

# torchdata 0.11 calls a function that newer versions of torch deprecate
TORCHDATA = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@pytest.fixture
def dataset_of(make_store):
    path, contents = make_store()
    opened = []

    def make(**options):
        store = open_store(path)
        options = {"latents": "tiny", "encoders": ["enc"], "batch_size": 8, "cls_tokens": True} | options
        opened.append(AlignmentDataset(store, **options))
        return opened[-1]

    make.path, make.contents = path, contents
    yield make
    for dataset in opened:
        dataset.close()


def assert_holds(batch, contents):
    np.testing.assert_array_equal(batch.moments, contents["latents/tiny/moments"][batch.indices])
    np.testing.assert_array_equal(batch.patch_tokens[0], contents["features/enc/tokens"][batch.indices])
    np.testing.assert_array_equal(batch.cls_tokens[0], contents["features/enc/cls_token"][batch.indices])
    assert batch.labels.tolist() == (batch.indices % 3).tolist()


LENT_MEMORY = "repa-pipe-batch"


def mappings():
    """Return the ranges of addresses at which this process maps memory of workers."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if LENT_MEMORY in line]
    return [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]


def is_lent(tensor):
    return any(start <= tensor.data_ptr() < end for start, end in mappings())


@pytest.mark.parametrize(
    ("start", "workers", "collate"),
    [
        ("fork", 2, {"collate_fn": MapStyleDataset.collate}),
        ("fork", 2, {}),
        ("spawn", 1, {}),
    ],  # importing torch is slow
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_data_loader_receives_batches_from_its_workers(dataset_of, start, workers, collate):
    loader = torch.utils.data.DataLoader(
        MapStyleDataset(dataset_of()),
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=start,
        **collate,
    )
    batches = list(loader)
    for batch in batches:
        assert_holds(batch, dataset_of.contents)
        assert is_lent(batch.patch_tokens[0])  # passed on without a copy
    assert sorted(np.concatenate([batch.indices for batch in batches]).tolist()) == list(range(50))


FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@FORKS
def test_the_memory_of_workers_is_used_again_and_freed_with_the_loader(dataset_of):
    rows = torch.utils.data.RandomSampler(range(50), replacement=True, num_samples=8 * 40)
    batches = iter(DataLoader(MapStyleDataset(dataset_of()), batch_size=8, sampler=rows, num_workers=1))
    kept = next(batches)
    seen = set()
    for batch in batches:
        assert_holds(batch, dataset_of.contents)
        seen |= set(mappings())
    assert_holds(kept, dataset_of.contents)
    assert len(seen) < 10 * 3  # three arrays each of 40 batches
    del batches, batch, kept
    gc.collect()
    assert not mappings()


@FORKS
def test_a_fork_that_drops_its_copy_of_a_batch_does_not_give_it_back(dataset_of):
    rows = torch.utils.data.RandomSampler(range(50), replacement=True, num_samples=8 * 20)
    batches = iter(DataLoader(MapStyleDataset(dataset_of()), batch_size=8, sampler=rows, num_workers=1))
    kept = next(batches)
    pid = os.fork()
    if pid == 0:
        kept = None
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list(batches)) == 19
    assert_holds(kept, dataset_of.contents)


@FORKS
def test_a_loader_may_take_batches_apart(dataset_of):
    def collate(found):
        return {"moments": found[0].moments, "part": found[0].patch_tokens[0][1:], "rows": found[0].indices}

    loader = DataLoader(MapStyleDataset(dataset_of()), batch_size=8, num_workers=2, collate_fn=collate)
    for batch in list(loader):
        np.testing.assert_array_equal(batch["moments"], dataset_of.contents["latents/tiny/moments"][batch["rows"]])
        np.testing.assert_array_equal(batch["part"], dataset_of.contents["features/enc/tokens"][batch["rows"][1:]])


def test_the_map_style_dataset_returns_single_samples(dataset_of):
    samples = MapStyleDataset(dataset_of())
    assert len(samples) == 50
    assert_holds(samples[7], dataset_of.contents)


def test_positions_of_the_map_style_dataset_are_those_of_numpy(dataset_of):
    samples = MapStyleDataset(dataset_of())
    assert_holds(samples[-1], dataset_of.contents)
    assert samples[-1].indices.tolist() == [49]
    assert samples[3:7].indices.tolist() == [3, 4, 5, 6]
    with pytest.raises(IndexError, match=r"in \[-50, 50\)"):
        samples[50]


def test_parts_of_a_map_style_dataset_are_collated(dataset_of):
    samples = MapStyleDataset(dataset_of())
    first, second = torch.utils.data.random_split(samples, [20, 30], torch.Generator().manual_seed(0))
    for part in (first, torch.utils.data.ConcatDataset([first, second])):
        batches = list(DataLoader(part, batch_size=8))
        assert sum(len(batch.labels) for batch in batches) == len(part)
        for batch in batches:
            assert_holds(batch, dataset_of.contents)


@pytest.mark.parametrize("options", [{"batch_size": None}, {}], ids=["none", "default"])
def test_a_data_loader_yields_the_batches_of_the_dataset(dataset_of, options):
    loader, dataset = DataLoader(dataset_of(), **options), dataset_of()
    for _ in range(2):
        for mine, other in zip(loader, dataset, strict=True):
            assert np.asarray(mine.indices).tolist() == other.indices.tolist()
            assert_holds(mine, dataset_of.contents)
    assert len(loader) == 6


def test_a_data_loader_that_joins_batches_is_told_how_to_call_the_dataset(dataset_of):
    with pytest.raises(ConfigError, match=r"joins 4 batches of 8 .* pass batch_size=None .* DataLoader\(MapStyle"):
        next(iter(DataLoader(dataset_of(), batch_size=4)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_are_refused_with_the_right_call(helpers, dataset_of):
    with pytest.raises(
        ConfigError, match=r"cannot be divided among workers: use DataLoader\(dataset, batch_size=None"
    ) as raised:
        next(iter(DataLoader(dataset_of(), batch_size=None, num_workers=2)))
    helpers.end_workers(raised)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_data_loader_reads_samples_of_the_store_itself(dataset_of):
    with open_store(dataset_of.path) as store:
        batches = list(DataLoader(store, batch_size=8, num_workers=2))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(50))
    assert batches[0]["key"][:2] == ["0000.png", "0001.png"]
    tokens = torch.cat([batch["features/enc/tokens"] for batch in batches])
    np.testing.assert_array_equal(tokens, dataset_of.contents["features/enc/tokens"])


@pytest.mark.parametrize("stop", [1, 4, 6, 8])
@TORCHDATA
def test_a_stateful_data_loader_resumes_the_dataset(dataset_of, stop):
    def loader():
        return StatefulDataLoader(dataset_of(), batch_size=None)

    assert_resumes(loader, stop)


@pytest.mark.parametrize("workers", [0, 2])
@TORCHDATA
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_stateful_data_loader_resumes_the_map_style_dataset(dataset_of, workers):
    def loader():
        samples, generator = MapStyleDataset(dataset_of()), torch.Generator().manual_seed(3)
        return StatefulDataLoader(samples, batch_size=8, shuffle=True, num_workers=workers, generator=generator)

    assert_resumes(loader, 4, rest=3)  # torchdata resumes the order of the current epoch


def assert_resumes(make_loader, stop, rest=5):
    def take(loader, count):
        taken = []
        while len(taken) < count:
            for batch in loader:
                taken.append(np.asarray(batch.indices).tolist())
                if len(taken) == count:
                    break
        return taken

    whole, interrupted, resumed = make_loader(), make_loader(), make_loader()
    expected = take(whole, stop + rest)
    assert take(interrupted, stop) == expected[:stop]
    resumed.load_state_dict(interrupted.state_dict())
    assert take(resumed, rest) == expected[stop:]


def test_a_reading_process_returns_the_same_batches(dataset_of):
    ours, theirs = dataset_of(process=True), dataset_of()
    for mine, other in zip(ours, theirs, strict=True):
        assert_holds(mine, dataset_of.contents)
        assert mine.indices.tolist() == other.indices.tolist()


def test_a_batch_of_a_reading_process_that_is_still_referenced_does_not_change(dataset_of):
    for batch in list(dataset_of(process=True)):
        assert_holds(batch, dataset_of.contents)


def test_errors_of_the_reading_process_are_raised(dataset_of):
    dataset = dataset_of(process=True)
    next(iter(dataset))
    for file in (dataset_of.path / "features/enc/tokens").rglob("c/*/*/*"):
        file.write_bytes(b"short")
    with pytest.raises(StoreError, match=r"has 5 bytes, expected .* \(commit record\)"):
        dataset_of(process=True).read(np.arange(50))


def test_a_killed_reading_process_is_reported_in_one_line(dataset_of):
    dataset = dataset_of(process=True)
    dataset.read(np.arange(8))
    os.kill(dataset._process._process.pid, signal.SIGKILL)
    with pytest.raises(StoreError, match=r"reads the store \(PID \d+\) has ended with exit code -9: re-run the"):
        dataset.read(np.arange(8))


def test_signals_that_ask_the_training_to_stop_leave_its_reading_process_alone(dataset_of):
    dataset = dataset_of(process=True)
    dataset.read(np.arange(8))
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        os.kill(dataset._process._process.pid, getattr(signal, name))
    assert_holds(dataset.read(np.arange(8)), dataset_of.contents)


def test_a_reading_process_that_hangs_is_named_after_the_limit_and_ended(dataset_of, monkeypatch):
    dataset = dataset_of(process=True)
    dataset.read(np.arange(8))
    process = dataset._process._process
    monkeypatch.setattr(reading_process, "READ_LIMIT_S", 1.0)
    os.kill(process.pid, signal.SIGSTOP)
    expected = rf"reads the store \(PID {process.pid}, T \(stopped\)\) has not answered for 1 s: check the disk"
    with pytest.raises(StoreError, match=expected):
        dataset.read(np.arange(8))
    with pytest.raises(StoreError, match="has ended with exit code -9"):
        dataset.read(np.arange(8))


@pytest.mark.slow
def test_waiting_for_a_reading_process_that_hangs_can_be_interrupted(dataset_of):
    dataset = dataset_of(process=True)
    start = time.monotonic()

    def interrupt():
        if time.monotonic() - start > 1.0:
            raise KeyboardInterrupt

    os.kill(dataset._process._process.pid, signal.SIGSTOP)
    with pytest.raises(KeyboardInterrupt):
        next(dataset.batches(waiting=interrupt))
    dataset.close()
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_a_program_that_closes_nothing_ends_although_its_reading_process_ignores_signals(dataset_of):
    lines = (
        "import numpy as np",
        "from repa_pipe.stores import AlignmentDataset",
        "if __name__ == '__main__':",
        f"    dataset = AlignmentDataset({str(dataset_of.path)!r}, batch_size=8, process=True)",
        "    dataset.read(np.arange(8))",
        "    print('read')",
    )
    file = dataset_of.path.parent / "program.py"
    file.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "read\n"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_read_ahead_thread_that_does_not_exist_is_not_waited_for(dataset_of):
    batches = dataset_of().batches()
    next(batches)
    pid = os.fork()
    if pid == 0:  # the thread is not part of the fork
        try:
            for _ in range(6):  # as many as were read ahead, and one more
                next(batches)
        except StoreError as error:
            os._exit(3 if "thread that reads the store has ended" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_dataset_with_a_reading_process_cannot_be_pickled(dataset_of):
    with pytest.raises(ConfigError, match="process=True"):
        dataset_of(process=True).__getstate__()
