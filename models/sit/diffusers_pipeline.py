"""A pipeline of diffusers that generates images with the velocity of a SiT, by Euler's method in equal steps.

`repa-pipe export … --to diffusers` copies this file into the folder, so it imports torch and diffusers alone. It
differs from DiTPipeline in three places: the steps from t = 1 to 0 are equal, the null label is the number of classes,
and latents have a shift as well as a scale.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
)
from diffusers.utils.torch_utils import randn_tensor


class SiTPipeline(DiffusionPipeline):
    """Images of classes, from a transformer that predicts the velocity, a scheduler and a VAE.

    Args:
        transformer: takes times of 0 (data) to 1000 (noise), as the scheduler does.
        vae: its config holds scale and shift of the latents: `scaling_factor` and `shift_factor`, or `latents_std` and
            `latents_mean` per channel.
        scheduler: with 1000 steps of training.
        id2label: names of classes by number, separated by commas if there are several.
    """

    model_cpu_offload_seq = "transformer->vae"

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        pairs = [(name.strip(), int(key)) for key, names in (id2label or {}).items() for name in names.split(",")]
        self.labels = dict(sorted(pairs))

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Return the numbers of classes; raise ValueError for a name that is not in `labels`."""
        names = [label] if isinstance(label, str) else label
        unknown = [name for name in names if name not in self.labels]
        if unknown:
            raise ValueError(f"unknown class {unknown[0]!r}: expected one of {', '.join(self.labels)}")
        return [self.labels[name] for name in names]

    @torch.no_grad()
    def __call__(  # noqa: PLR0917 - as DiTPipeline
        self,
        class_labels: list[int],
        guidance_scale: float = 1.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate one image per label.

        Args:
            class_labels: numbers of classes.
            guidance_scale: scale of classifier-free guidance; 1 for none.
            generator: of the noise.
            num_inference_steps: number of Euler steps.
            latents: noise [B, C, h, w] in place of that of the generator.
            output_type: "pil", "np" (float [B, H, W, 3] from 0 to 1), "pt" ([B, 3, H, W]) or "latent".
            return_dict: False for a tuple.

        Raises:
            ValueError: a label is not that of a class.
        """
        classes, device = self.transformer.config.num_embeds_ada_norm, self._execution_device
        if not all(0 <= label < classes for label in class_labels):
            raise ValueError(f"class_labels are {class_labels}: expected numbers from 0 to {classes - 1}")
        state = self._noise(len(class_labels), generator) if latents is None else latents
        state = state.to(device, self.transformer.dtype)
        labels = torch.tensor(class_labels, device=device)
        sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        for time in self.progress_bar(self.scheduler.timesteps):
            velocity = self._velocity(state, time.expand(len(state)), labels, guidance_scale)
            state = self.scheduler.step(velocity, time, state).prev_sample
        images = state if output_type == "latent" else self._decode(state, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(self, count: int, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
        config = self.transformer.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.transformer.dtype)

    def _velocity(self, state: torch.Tensor, times: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
        if scale == 1:
            velocity: torch.Tensor = self.transformer(state, timestep=times, class_labels=labels).sample
            return velocity
        null = torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)
        both: torch.Tensor = self.transformer(
            torch.cat([state, state]), timestep=torch.cat([times, times]), class_labels=torch.cat([labels, null])
        ).sample
        with_label, without = both.chunk(2)
        return without + scale * (with_label - without)

    def _decode(self, state: torch.Tensor, output_type: str) -> Any:
        config = self.vae.config
        if config.latents_std:  # one scale per channel
            mean, std = (
                torch.tensor(values, device=state.device).view(1, -1, 1, 1)
                for values in (config.latents_mean, config.latents_std)
            )
            unscaled = state * std + mean
        else:
            unscaled = state / config.scaling_factor + (config.shift_factor or 0)
        images = (self.vae.decode(unscaled.to(self.vae.dtype)).sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays
