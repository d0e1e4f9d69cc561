import pytest
import torch

from repa_pipe.pipeline.encoding.batch_size import fits_on_gpu, largest_batch


@pytest.mark.parametrize(("memory", "expected"), [(1, 8), (16, 16), (100, 64), (10_000, 256)])
def test_the_largest_power_of_two_that_fits_is_found(memory, expected):
    tried = []

    def fits(batch_size):
        tried.append(batch_size)
        return batch_size <= memory

    assert largest_batch(fits) == expected
    assert tried == sorted(set(tried))
    assert tried[-1] <= 2 * expected


@pytest.mark.parametrize(("out_of_memory_above", "expected"), [(1000, 64), (64, 64), (40, 32), (9, 8)])
def test_a_fifth_of_the_free_memory_stays_unused(monkeypatch, out_of_memory_above, expected):
    """On a GPU with 1,000 bytes, of which the model takes 100 and every image 10."""
    peak = [0]

    def run(crops):
        assert crops.shape[1:] == (3, 16, 16)
        if len(crops) > out_of_memory_above:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        peak[0] = 100 + 10 * len(crops)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900, 1000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak[0])
    assert largest_batch(fits_on_gpu(run, 16, torch.device("cpu"))) == expected
