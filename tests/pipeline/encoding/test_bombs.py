"""Bombs among the images of `encode`: quarantined with a reason, in seconds, without an effect on their neighbors."""

import json
import subprocess
import sys

import numpy as np
import pytest

from repa_pipe.stores import open_store

from ...sources import bombs

pytestmark = pytest.mark.slow
SIDE = 64
GROUP = "latents/tiny-kl-f8"

ENCODE = """
import json, resource, sys, time
from repa_pipe.config import EncodeConfig
from repa_pipe.pipeline import encode
config = EncodeConfig(source=sys.argv[1], store=sys.argv[2], vae="tiny-kl-f8", resolution=64, batch_size=8, max_bad=1,
                      device="cpu", decode_threads=8)
start = time.monotonic()
result = encode.run(config)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps({"seconds": time.monotonic() - start, "peak": peak, "quarantined": result.quarantined}))
"""


def encode(source, store):
    done = subprocess.run([sys.executable, "-c", ENCODE, source, store], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_bombs_are_quarantined_in_seconds_and_their_neighbors_are_encoded_bit_equally(tmp_path):
    files = bombs.all_bombs()
    names = [f"{number:03d}-{name.replace('/', '')}" for number, name in enumerate(files)]
    for folder in ("with", "without"):
        (tmp_path / folder / "class").mkdir(parents=True)
        for number, (name, data) in enumerate(zip(names, files.values(), strict=True)):
            (tmp_path / folder / "class" / f"{name}.png").write_bytes(data if folder == "with" else bombs.noise(number))
            (tmp_path / folder / "class" / f"{name} neighbor.png").write_bytes(bombs.noise(1000 + number))
    found, expected = (encode(tmp_path / folder, tmp_path / f"{folder}-store") for folder in ("with", "without"))
    assert found["quarantined"] == len(bombs.REFUSED)
    assert found["seconds"] < expected["seconds"] + 30
    assert found["peak"] < expected["peak"] + 1000  # MiB; the files themselves have up to 100
    with open_store(tmp_path / "with-store") as one, open_store(tmp_path / "without-store") as other:
        neighbors = [index for index, key in enumerate(one.samples["key"].to_pylist()) if "neighbor" in key]
        assert len(neighbors) == len(files)
        moments = [store.read([GROUP], np.array(neighbors))[f"{GROUP}/moments"] for store in (one, other)]
        assert np.array_equal(*moments)
        reasons = {one.samples["key"][index].as_py(): entry.reason for index, entry in one.quarantined().items()}
    for name, reason in zip(names, (why for _, why in bombs.REFUSED.values()), strict=False):
        assert reason in reasons[f"class/{name}.png"]
