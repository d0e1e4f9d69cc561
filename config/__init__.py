"""The settings of every command: one frozen dataclass per stage, and recipes, files with settings of `train`.

`base.py` holds the base class, `recipe.py` reads `recipes/*.toml`. The pipeline and the command line import this
package; it imports only `converter` and `errors` of the project, and none of the large libraries.
"""

from .ablate import AblateConfig
from .base import OBJECTIVE, SECTIONS, Config, flag, no_flag
from .encode import EncodeConfig
from .evaluate import EvaluateConfig
from .export import ExportConfig
from .nearest import NearestConfig
from .plan import PlanConfig
from .probe import ProbeConfig
from .rank import RankConfig
from .recipe import Recipe, read_recipe, recipe_names
from .sample import SampleConfig
from .settings_file import read_settings
from .train import TrainConfig

__all__ = [
    "OBJECTIVE",
    "SECTIONS",
    "AblateConfig",
    "Config",
    "EncodeConfig",
    "EvaluateConfig",
    "ExportConfig",
    "NearestConfig",
    "PlanConfig",
    "ProbeConfig",
    "RankConfig",
    "Recipe",
    "SampleConfig",
    "TrainConfig",
    "flag",
    "no_flag",
    "read_recipe",
    "read_settings",
    "recipe_names",
]
