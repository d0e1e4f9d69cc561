"""The terms of a config. A term of a user's own package is found by its entry point, in the group `repa_pipe.terms`."""

from __future__ import annotations

from importlib.metadata import entry_points

from ....config import TrainConfig
from ....converter import shown
from ....errors import ConfigError, first_line
from ....models.class_token import ClassTokenModel
from ....models.diffusion_model import DiffusionModel
from ....models.raev2.model import BASE
from ....models.sit import EntangledSiT, SiT
from .alignment import AlignmentTerm
from .attention import AttentionTerm
from .base_head import BaseHeadTerm
from .class_token import ClassTokenTerm
from .contrast import ContrastTerm
from .denoising import DenoisingTerm
from .direction import DirectionTerm
from .dispersive import DispersiveTerm
from .self_alignment import SelfAlignmentTerm
from .term import Term, TermContext

GROUP = "repa_pipe.terms"


def make_terms(context: TermContext) -> list[Term]:
    """Return the terms of a config, denoising and alignment first."""
    config, model = context.config, context.model
    if config.token_groups:
        is_plain = isinstance(model, SiT) and not isinstance(model, EntangledSiT)
        config.require(is_plain, "token_groups", f"does not apply to {config.model}: expected a SiT")
    terms: list[Term] = [DenoisingTerm(model), AlignmentTerm(config, context.store)]
    if isinstance(model, ClassTokenModel):
        terms.append(ClassTokenTerm(config, model, context.streams))
    if config.cosine_coeff:
        terms.append(DirectionTerm(model, config.cosine_coeff))
    if BASE in model.taps:
        terms.append(BaseHeadTerm())
    if config.contrast_coeff:
        terms.append(ContrastTerm(context))
    if config.dispersive_coeff:
        terms.append(DispersiveTerm(context))
    if config.self_coeff:
        terms.append(SelfAlignmentTerm(context))
    if config.attn_coeff:
        terms.append(AttentionTerm(context))
    for name, coefficient in config.own_terms.items():
        term: Term = user_term(name)(context)  # type: ignore[call-arg]
        term.coefficient = coefficient
        terms.append(term)
    for term in terms:
        missing = [tap for tap in term.taps if tap not in model.taps]
        if missing:
            raise ConfigError(
                f"the term of {term.metric} reads {missing[0]} of the model, which {config.model} does not offer: "
                f"{', '.join(model.taps) or 'it offers nothing'}"
            )
    return terms


def attach_heads(config: TrainConfig, model: DiffusionModel) -> None:
    """Give a model the heads that the terms of a config train."""
    config.require(
        not config.self_coeff or isinstance(model, SiT),
        "self_coeff",
        f"does not apply to {config.model}: expected a SiT",
    )
    kinds: list[type[Term]] = [SelfAlignmentTerm] * bool(config.self_coeff) + [*map(user_term, config.own_terms)]
    for kind in kinds:
        for name, head in kind.heads(config, model).items():
            if hasattr(model, name):
                raise ConfigError(f"{kind.__name__} trains a head {shown(name)}, a name that the model has already")
            model.add_module(name, head)
            model.heads = (*model.heads, name)


def user_term(name: str) -> type[Term]:
    """Return the class of a term of an installed package.

    Raises:
        ConfigError: no package has this term, or it cannot be imported.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = f"expected one of {', '.join(sorted(found))}" if found else "no installed package has terms"
        raise ConfigError(f"--term {name}: {known} (entry points of the group {GROUP})")
    try:
        kind = found[name].load()
    except Exception as error:
        raise ConfigError(f"--term {name}: {found[name].value} cannot be imported ({first_line(error)})") from error
    if not (isinstance(kind, type) and issubclass(kind, Term)):
        raise ConfigError(f"--term {name}: {found[name].value} is no subclass of {Term.__module__}.Term")
    return kind
