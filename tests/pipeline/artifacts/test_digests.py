"""Digests of files of any kind."""

import os

import numpy as np
import pytest

from repa_pipe.pipeline.artifacts.digests import file_digest


@pytest.mark.parametrize("kind", ["zip", "bytes"])
def test_a_digest_is_that_of_the_content_and_not_of_the_file(tmp_path, kind):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, value in zip(paths, (1, 1, 2), strict=True):
        array = np.full(1000, value, np.int32)
        path.write_bytes(array.tobytes())
        if kind == "zip":
            with path.open("wb") as file:
                np.savez(file, x=array)
    os.utime(paths[1], (1, 1))
    digests = [file_digest(path) for path in paths]
    assert digests[0] == digests[1] != digests[2]


def test_files_that_begin_the_same_have_other_digests(tmp_path):
    for name, content in (("a", b"0" * 10), ("b", b"0" * 11)):
        (tmp_path / name).write_bytes(content)
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")
