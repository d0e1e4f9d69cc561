"""What a sweep's file means, and what is wrong with it."""

from pathlib import Path

import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.ablation.sweep import Resources, read_sweep


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return read_sweep(path, "a store", Path("out"))

    return read


def test_a_grid_is_every_combination_and_seeds_stand_together(read):
    sweep = read(
        '[train]\nbatch_size = 8\n[grid]\nenc_type = ["a", ["b", "c"]]\nproj_coeff = [0.5, 1]\nseed = [3, 1]\n'
    )
    assert len(sweep.runs) == 8
    assert [run.seed for run in sweep.runs] == [1] * 4 + [3] * 4
    assert [run.exp_name for run in sweep.runs[:4]] == [
        *("enc_type=a,proj_coeff=0.5,seed=1", "enc_type=a,proj_coeff=1,seed=1"),
        *("enc_type=b+c,proj_coeff=0.5,seed=1", "enc_type=b+c,proj_coeff=1,seed=1"),
    ]
    assert {(run.batch_size, run.store, run.output_dir) for run in sweep.runs} == {(8, "a store", "out")}
    assert sweep.runs[3].enc_type == ("b", "c")
    assert isinstance(sweep.runs[3].proj_coeff, float)
    assert (sweep.sample, sweep.evaluate, sweep.resources) == (None, None, Resources())


def test_a_list_may_be_combined_with_a_grid_and_override_what_is_shared(read):
    sweep = read(
        '[train]\nmodel = "SiT-B/2"\n[[runs]]\nexp_name = "irepa"\nprojector = "conv"\nspatial_norm = 1\n'
        '[[runs]]\nmodel = "SiT-L/2"\n[grid]\nseed = [0, 1]\n'
    )
    assert [run.exp_name for run in sweep.runs] == [
        *("irepa,seed=0", "model=SiT-L-2,seed=0", "irepa,seed=1", "model=SiT-L-2,seed=1")
    ]
    assert [run.model for run in sweep.runs[:2]] == ["SiT-B/2", "SiT-L/2"]
    assert sweep.runs[0].spatial_norm == 1.0


def test_samples_and_metrics_have_one_setting_for_all(read):
    sweep = read(
        '[grid]\nseed = [0]\n[sample]\nmode = "sde"\ncfg_scale = 1\ndevice = "cpu"\n'
        '[evaluate]\ndetector = ["a", "b"]\nevery_checkpoint = true\n[resources]\ngpus = 0.5\nprocesses = 2\n'
    )
    assert (sweep.sample.mode, sweep.sample.cfg_scale, sweep.every_checkpoint) == ("sde", 1.0, True)
    assert (sweep.evaluate.reference, sweep.evaluate.device) == ("a store", "cpu")
    assert sweep.evaluate.detector == ("a", "b")
    assert sweep.resources == Resources(processes=2, gpus=0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid", "cannot be read as a sweep"),
        ("[trian]\n[grid]\nseed = [0]", "'trian' is none of its keys: take train"),
        ("[train]\nseed = 1", "names no run"),
        ("train = 3", r"train is 3: write \[train\]"),
        ("runs = [1]", r"runs is \[1\]: write \[\[runs\]\]"),
        ("runs = []", "names no run"),
        ("[grid]\nseed = [0]\n[sample]\n[evaluate]\nevery_checkpoint = 1", "true or false is expected"),
        ("[grid]\nseed = 3", r"\[grid\] seed is 3: give a list"),
        ("[grid]\nseed = []", r"\[grid\] seed is \[\]: give a list"),
        ("[grid]\nlearning_rat = [1]", "'learning_rat' is none of its keys: take learning_rate"),
        ('[grid]\nstore = ["a"]', "'store' is none of its keys"),
        ('[grid]\nseed = ["1"]', "seed is '1': int is expected"),
        ("[grid]\nqk_norm = [1]", "qk_norm is 1: bool is expected"),
        ("[grid]\nbatch_size = [0]", "run batch_size=0: --batch-size is 0"),
        ('[grid]\npath_type = ["round"]', "--path-type is 'round'"),
        ("[grid]\nseed = [1, 1]", "run seed=1 is there twice"),
        ("[grid]\nseed = [0]\n[evaluate]", r"\[evaluate\] without \[sample\]"),
        ('[grid]\nseed = [0]\n[sample]\ncheckpoint = "a"', "'checkpoint' is none of its keys"),
        ("[grid]\nseed = [0]\n[resources]\nprocesses = 0", "processes is 0"),
        ('[grid]\nseed = [0]\n[resources]\ngpus = "1"', "gpus is '1'"),
    ],
)
def test_what_cannot_work_is_named_with_its_place(read, text, words):
    with pytest.raises(ConfigError, match=words) as raised:
        read(text)
    assert "sweep.toml" in str(raised.value)
    assert "\n" not in str(raised.value)
