"""Self-alignment (SRA, arXiv 2505.02831): tokens of an earlier block predict those of a later one of the EMA model.

The teacher, the EMA, sees the same data and noise at an earlier time, that is with less noise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ....config import TrainConfig
from ....diffusion.loss import self_alignment_loss
from ....diffusion.token_times import times_of
from ....models.diffusion_model import DiffusionModel
from ....models.self_alignment import SELF_HEAD, SelfAlignmentHead
from ....models.sit.model import block_tap
from ....stores import Batch
from ...runtime.distributed import DistributedContext
from ...runtime.seeds import Stream
from .term import Inputs, ModelOutput, Prepared, TeacherCall, Term, TermContext

OFFSETS = "teacher_offsets"


class SelfAlignmentTerm(Term):
    """Mean over samples and channels of the cosine distance between head(student's tokens) and teacher's tokens."""

    metric: ClassVar[str] = "self_alignment_loss"

    def __init__(self, context: TermContext) -> None:
        self._config, self._streams = context.config, context.streams
        self._head = context.model.get_submodule(SELF_HEAD)
        self._student, self._teacher = context.config.self_aligned_blocks
        depth = len(context.model.blocks)
        context.config.require(
            max(self._student, self._teacher) <= depth, "self_blocks", f"expected blocks from 1 to {depth}"
        )

    @classmethod
    def heads(cls, config: TrainConfig, model: DiffusionModel) -> dict[str, nn.Module]:
        """Return the head, under its published name."""
        return {SELF_HEAD: SelfAlignmentHead(model.config.hidden_size)}  # type: ignore[attr-defined]

    @property
    def taps(self) -> tuple[str, ...]:
        """The tokens after the student's block."""
        return (block_tap(self._student),)

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return the `teacher_offsets`, uniform draws [B, G], one per group of tokens; G is 1 without groups."""
        count, device = self._config.batch_size, batch.labels.device
        generator = self._streams.generator(Stream.TEACHER, step, device)
        groups = 2 if self._config.token_groups else 1
        return {OFFSETS: torch.rand((count, groups), generator=generator, device=device)[ranks.rows(count)]}

    def ask_teacher(self, inputs: Inputs, labels: Tensor, prepared: Prepared) -> TeacherCall:
        """Ask for the teacher's block at earlier times.

        As published, it gets the labels after dropout; with times per token, those before.
        """
        offsets, groups = prepared[OFFSETS], inputs.groups
        offset = offsets[:, 0] if groups is None else times_of(groups, offsets.T)
        return TeacherCall(
            key="earlier",
            times=(inputs.times - self._config.self_offset * offset).clamp(0, 1),
            labels=labels if groups is None else inputs.labels,
            blocks=(self._teacher,),
            groups=groups if self._config.separate_attention else None,
        )

    def weight(self, step: int) -> float:
        """Return `--self-coeff`."""
        return self._config.self_coeff

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean over samples and channels."""
        student = self._head(output.tapped[block_tap(self._student)])
        return self_alignment_loss(student, output.teacher[block_tap(self._teacher)]).mean()
