"""A folder of PNG files holds the images of one .npz and nothing else."""

import numpy as np
import pytest
from PIL import Image

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.artifacts.images import write_npz
from repa_pipe.pipeline.artifacts.png_folder import check_png_folder, write_png_folder


@pytest.fixture
def npz_of(tmp_path):
    def make(count, seed=0):
        images = np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)[:count]
        path = tmp_path / f"{count}-{seed}.npz"
        write_npz(path, [images], np.zeros(count, np.int64), 8)
        return path, images

    return make


def contents(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def test_an_export_resumes_and_grows(npz_of, tmp_path):
    folder = tmp_path / "png"
    write_png_folder(npz_of(3)[0], folder)
    (folder / "000001.png").unlink()
    (folder / "000002.png.tmp-host-1-ab").write_bytes(b"of a killed process")
    stamp = (folder / "000000.png").stat().st_mtime_ns
    path, images = npz_of(6)
    write_png_folder(path, folder)
    (folder / "000002.png.tmp-host-1-ab").unlink()
    np.testing.assert_array_equal(contents(folder), images)
    assert (folder / "000000.png").stat().st_mtime_ns == stamp


def test_files_of_an_earlier_larger_export_are_refused(npz_of, tmp_path):
    folder = tmp_path / "png"
    path, images = npz_of(6)
    write_png_folder(path, folder)
    with pytest.raises(ConfigError, match=r"png holds 000004.png and 1 more, not part of these 4 images"):
        write_png_folder(npz_of(4)[0], folder)
    np.testing.assert_array_equal(contents(folder), images)


@pytest.mark.parametrize("other", ["image", "damaged"])
def test_files_of_other_images_are_refused_and_kept(npz_of, tmp_path, other):
    folder = tmp_path / "png"
    write_png_folder(npz_of(4, seed=1)[0], folder)
    if other == "damaged":
        (folder / "000000.png").write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="holds another image than the one generated"):
        write_png_folder(npz_of(4)[0], folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_anything_else_is_refused_before_images_are_generated(tmp_path):
    check_png_folder(tmp_path / "new", 4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes.txt, not part of these 4 images"):
        check_png_folder(tmp_path, 4)
    with pytest.raises(ConfigError, match="which is a file"):
        check_png_folder(tmp_path / "notes.txt", 4)
