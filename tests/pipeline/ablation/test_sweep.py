"""Reading sweep files, and the errors for files that cannot work."""

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


def test_a_grid_gives_every_combination_grouped_by_seed(read):
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


def test_runs_combine_with_a_grid_and_override_shared_settings(read):
    sweep = read(
        '[train]\nmodel = "SiT-B/2"\n[[runs]]\nexp_name = "irepa"\nprojector = "conv"\nspatial_norm = 1\n'
        '[[runs]]\nmodel = "SiT-L/2"\n[grid]\nseed = [0, 1]\n'
    )
    assert [run.exp_name for run in sweep.runs] == [
        *("irepa,seed=0", "model=SiT-L-2,seed=0", "irepa,seed=1", "model=SiT-L-2,seed=1")
    ]
    assert [run.model for run in sweep.runs[:2]] == ["SiT-B/2", "SiT-L/2"]
    assert sweep.runs[0].spatial_norm == 1.0


METHODS = Path(__file__).parents[3] / "runs" / "sweeps" / "methods.toml"


def test_runs_begin_with_a_recipe_that_the_file_overrides(read):
    sweep = read('[train]\nbatch_size = 8\n[[runs]]\nrecipe = "reg"\n[[runs]]\nrecipe = "irepa"\nspatial_norm = 0.5\n')
    assert [run.exp_name for run in sweep.runs] == ["recipe=reg", "recipe=irepa,spatial_norm=0.5"]
    assert [(run.cls_coeff, run.projector, run.spatial_norm) for run in sweep.runs] == [
        (0.03, "mlp", None),
        (0.0, "conv", 0.5),
    ]
    assert {run.batch_size for run in sweep.runs} == {8}
    for text, message in (("5", "recipe is 5: expected the name"), ('"sit"', "--recipe is 'sit': expected one of cfm")):
        with pytest.raises(ConfigError, match=message):
            read(f"[[runs]]\nrecipe = {text}\n")


def test_the_sweep_of_methods_has_ten_runs_of_one_size():
    sweep = read_sweep(METHODS, "a store", Path("out"))
    assert len(sweep.runs) == 10
    assert {(run.model, run.batch_size, run.encoder_depth, run.flip) for run in sweep.runs} == {
        ("SiT-B/2", 256, 4, False)
    }
    terms = ("proj_coeff", "cls_coeff", "contrast_coeff", "dispersive_coeff", "self_coeff", "token_groups")
    terms += ("alignment_loss", "attn_coeff", "spatial_norm")
    assert len({tuple(getattr(run, term) for term in terms) for run in sweep.runs}) == 10


def test_all_runs_are_sampled_and_evaluated_alike(read):
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
        ("[grid", "sweep .* cannot be read"),
        ("[trian]\n[grid]\nseed = [0]", "unknown key 'trian'; expected train"),
        ("[train]\nseed = 1", "has no runs"),
        ("train = 3", "train: expected object, found int"),
        ("runs = [1]", r"runs\[0\]: expected object, found int"),
        ("runs = []", "has no runs"),
        (
            "[grid]\nseed = [0]\n[sample]\n[evaluate]\nevery_checkpoint = 1",
            "every_checkpoint is 1: expected true or false",
        ),
        ("[grid]\nseed = 3", r"\[grid\] seed is 3: expected a list"),
        ("[grid]\nseed = []", r"\[grid\] seed is \[\]: expected a list"),
        ("[grid]\nlearning_rat = [1]", "unknown key 'learning_rat'; expected learning_rate"),
        ('[grid]\nstore = ["a"]', "store cannot be set in a sweep"),
        ('[grid]\nseed = ["1"]', "seed: expected int, found str"),
        ("[grid]\nqk_norm = [1]", "qk_norm: expected bool, found int"),
        ("[grid]\nbatch_size = [0]", "run batch_size=0: --batch-size is 0"),
        ('[grid]\npath_type = ["round"]', "path_type: invalid enum value 'round'; expected linear or cosine"),
        ("[grid]\nseed = [1, 1]", "run seed=1 occurs twice"),
        ("[grid]\nseed = [0]\n[evaluate]", r"\[evaluate\] without \[sample\]"),
        ('[grid]\nseed = [0]\n[sample]\ncheckpoint = "a"', "checkpoint cannot be set in a sweep"),
        ("[grid]\nseed = [0]\n[resources]\nprocesses = 0", "processes is 0"),
        ('[grid]\nseed = [0]\n[resources]\ngpus = "1"', "gpus: expected .*, found str"),
    ],
)
def test_errors_name_the_place_in_the_file(read, text, words):
    with pytest.raises(ConfigError, match=words) as raised:
        read(text)
    assert "sweep.toml" in str(raised.value)
    assert "\n" not in str(raised.value)
