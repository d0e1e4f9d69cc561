"""Recipes: the shipped ones, files of users, and how they combine with flags."""

import math

import pytest

from repa_pipe import cli
from repa_pipe.config import TrainConfig, read_recipe, recipe_names
from repa_pipe.errors import ConfigError
from repa_pipe.options import config_of


def parse(*args):
    return config_of(TrainConfig, cli.train.make_context("train", ["--store", "s", *args]).params)


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "own.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_published_methods_are_shipped():
    names = "cfm dispersive haste irepa irepa-jit lightningdit rae-dit-dh raev2 reg "
    names += "repa repa-e sr-dit sra sra-dts-as"
    assert recipe_names() == names.split()


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_a_valid_config(name):
    settings = read_recipe(name).settings
    config = TrainConfig(store="s", **settings)
    assert {key: getattr(config, key) for key in settings} == settings
    assert "store" not in settings
    assert parse("--recipe", name) == config


def test_shipped_recipes_have_the_published_coefficients():
    repa, irepa, reg = (parse("--recipe", name) for name in ("repa", "irepa", "reg"))
    assert (repa.proj_coeff, repa.projector, repa.spatial_norm, repa.legacy) == (0.5, "mlp", None, True)
    assert (irepa.proj_coeff, irepa.projector, irepa.spatial_norm) == (1.0, "conv", 0.6)
    assert (reg.proj_coeff, reg.cls_coeff) == (0.5, 0.03)
    haste = parse("--recipe", "haste")
    assert (haste.proj_coeff, haste.attn_coeff, haste.alignment_steps) == (0.5, 0.5, 250_000)
    jit = parse("--recipe", "irepa-jit")
    assert (jit.proj_coeff, jit.spatial_norm, jit.projector_kernel_size, jit.encoder_depth) == (0.5, 0.8, 3, 4)
    assert (jit.time_mean, jit.time_std, jit.flip) == (0.8, 0.8, True)
    assert (jit.learning_rate, jit.warmup_steps) == (5e-5 * 512 / 256, 5 * (1_281_167 // 512))
    rae = parse("--recipe", "rae-dit-dh")
    assert rae.time_shift == pytest.approx((768 * 16 * 16 / 4096) ** 0.5)
    assert (rae.learning_rate, rae.lr_final, rae.ema_decay, rae.adam_beta2) == (2e-4, 2e-5, 0.9995, 0.95)
    raev2 = parse("--recipe", "raev2")
    assert raev2.time_shift == (1024 * 16 * 16 / 4096) ** 0.5
    assert (raev2.optimizer, raev2.weighting, raev2.flip) == ("muon", "lognormal", False)
    assert (raev2.lr_constant_steps, raev2.lr_decay_steps) == (25 * 1251, 50 * 1251)
    lightning = parse("--recipe", "lightningdit")
    assert (lightning.cosine_coeff, lightning.weighting, lightning.max_grad_norm) == (1.0, "lognormal", math.inf)
    repa_e = parse("--recipe", "repa-e")
    assert (repa_e.latents_eps, repa_e.legacy, repa_e.proj_coeff) == (1e-4, False, 0.5)


def test_flags_override_the_recipe_and_the_recipe_overrides_defaults():
    config = parse("--recipe", "irepa", "--spatial-norm", "0.8", "--model", "SiT-B/2")
    assert (config.spatial_norm, config.model) == (0.8, "SiT-B/2")
    assert (config.proj_coeff, config.projector) == (1.0, "conv")
    assert config.enc_type == ()  # not in the recipe: the default


def test_a_flag_with_its_default_value_also_overrides_the_recipe():
    config = parse("--recipe", "irepa", "--proj-coeff", "0.5", "--projector", "mlp")
    assert (config.proj_coeff, config.projector) == (0.5, "mlp")
    assert not parse("--recipe", "repa", "--no-legacy").legacy


def test_without_a_recipe_the_defaults_apply():
    assert parse() == TrainConfig(store="s")


def test_shipped_recipes_state_method_paper_and_result():
    for name in recipe_names():
        about = read_recipe(name).about
        assert about.summary
        assert about.source.startswith("arXiv ")
        assert about.published


def test_a_toml_file_of_a_user_is_a_recipe(recipe_file):
    path = recipe_file('enc_type = ["dinov2-vit-b", "clip-vit-L"]\nproj_coeff = 1\nalignment_steps = 100\n')
    config = parse("--recipe", path, "--seed", "3")
    assert config == TrainConfig(
        store="s", enc_type=("dinov2-vit-b", "clip-vit-L"), proj_coeff=1.0, alignment_steps=100, seed=3
    )
    assert isinstance(config.proj_coeff, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("proj_coef = 1.0", "unknown key 'proj_coef'; expected proj_coeff"),
        ('batch_size = "256"', "batch_size: expected int, found str"),
        ('enc_type = "dinov2-vit-b"', "enc_type: expected array, found str"),
        ('projector = "linear"', "projector: invalid enum value 'linear'; expected mlp or conv"),
        ("batch_size = 0", "--batch-size is 0: must be at least 1"),
        ("batch_size = ", "cannot be read"),
        ('[about]\nsummary = "mine"', "about: required key 'source' is missing"),
    ],
)
def test_an_error_in_a_recipe_is_one_line_that_names_the_file_and_the_key(recipe_file, text, message):
    path = recipe_file(text)
    with pytest.raises(ConfigError) as raised:
        parse("--recipe", path)
    assert message in str(raised.value)
    assert f"recipe {path}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_recipe_is_one_line_that_lists_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=rf"^--recipe is 'sit': expected one of {', '.join(recipe_names())}, or a \.toml file$",
    ):
        read_recipe("sit")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^--recipe .*none\.toml cannot be read \(.*No such file.*\)$"):
        read_recipe(str(tmp_path / "none.toml"))
