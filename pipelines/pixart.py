"""PixArt-Sigma with a picture to start from: the stock text-to-image call, begun in the middle of its schedule.

SDEdit (Meng et al. 2021, arXiv 2108.01073): the picture is noised to the level of `strength`, and denoised from there.
Inpainting sets what the mask keeps back to the noised picture after each step, as diffusers' own inpainting pipelines
do (and Lugmayr et al. 2022, arXiv 2201.09865, without their resampling).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

_Stock: Any = PixArtSigmaPipeline  # diffusers says nothing of its types
AfterStep = Callable[[int, int, torch.Tensor], None]


class PixArtSigmaImg2ImgPipeline(_Stock):
    """Picture and text to picture; with a mask, only what is white in it is made anew."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        strength: float = 0.6,
        negative_prompt: str = "",
        num_inference_steps: int = 20,
        guidance_scale: float = 4.5,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        clean_caption: bool = True,
        use_resolution_binning: bool = False,
        max_sequence_length: int = 300,
    ) -> Any:
        """As PixArtSigmaPipeline, whose arguments these are, but for three; `use_resolution_binning` can only be false.

        `image`: where to start, resized to `height` x `width` pixels. `strength`, above 0 and at most 1: how far it is
        noised, and which part of the `num_inference_steps` is made; at 1 nothing of the picture is left. `mask_image`:
        what is black in it is kept. Raises ValueError for another strength, and where no step would be made.
        """
        start = num_inference_steps - min(round(num_inference_steps * strength), num_inference_steps)
        if not 0 < strength <= 1 or start == num_inference_steps:
            raise ValueError(
                f"strength={strength} makes none of the {num_inference_steps} steps; give it above 0 and at most 1"
            )
        if use_resolution_binning:
            raise ValueError(
                "use_resolution_binning=True would change the size that the picture is noised in; set it to false"
            )
        size = self.transformer.config.sample_size * self.vae_scale_factor
        height, width = height or size, width or size
        clean = self._encoded(image, height, width)  # 1 C h w
        noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        with _starting_at(self.scheduler, start):
            self.scheduler.set_timesteps(num_inference_steps, device=clean.device)
            return super().__call__(
                prompt,
                negative_prompt,
                num_inference_steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                generator=generator,
                latents=noise if start == 0 else self._noised(clean, noise),
                output_type=output_type,
                return_dict=return_dict,
                callback=None if mask_image is None else self._keeping(clean, noise, mask_image, height, width),
                clean_caption=clean_caption,
                use_resolution_binning=False,
                max_sequence_length=max_sequence_length,
            )

    def _encoded(self, image: Any, height: int, width: int) -> torch.Tensor:
        pixels = self.image_processor.preprocess(image, height=height, width=width)
        pixels = pixels.to(self._execution_device, self.vae.dtype)  # 1 3 H W
        return self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor

    def _noised(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """At the noise level where the scheduler is: before its next step, and clean after the last."""
        return self.scheduler.add_noise(clean, noise, self.scheduler.timesteps[:1])

    def _keeping(self, clean: torch.Tensor, noise: torch.Tensor, mask: Any, height: int, width: int) -> AfterStep:
        """What sets the masked-out part of the latents back after each step, in place."""
        processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )
        pixels = processor.preprocess(mask, height=height, width=width)  # 1 1 H W; 1 is to be made anew
        kept = torch.nn.functional.interpolate(pixels, size=clean.shape[-2:]).to(clean.device) < 0.5

        def after_step(step: int, timestep: int, latents: torch.Tensor) -> None:
            latents.copy_(torch.where(kept, self._noised(clean, noise).to(latents.dtype), latents))

        return after_step


@contextmanager
def _starting_at(scheduler: Any, start: int) -> Iterator[None]:
    """Within, the schedule has no more than its steps from `start` on: multistep solvers then take the first of them
    for their first, and the last for their last."""
    set_timesteps = scheduler.set_timesteps

    def from_start(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[start:], scheduler.sigmas[start:]
        scheduler.num_inference_steps = len(scheduler.timesteps)
        scheduler.set_begin_index(0)  # also tells add_noise that the noise level is by step, not by timestep

    scheduler.set_timesteps = from_start
    try:
        yield
    finally:
        del scheduler.set_timesteps
