"""The autoencoder that the image families share."""

from diffusers import AutoencoderKL

from .weights import randomise

LATENT_CHANNELS = 4


def image_vae(seed: int, *, latent_channels: int = LATENT_CHANNELS, shift_factor: float | None = None) -> AutoencoderKL:
    """Halves height and width: two resolutions are enough to have an upsampler, and keep the picture small."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.0,
        shift_factor=shift_factor,
    )
    return randomise(vae, seed)
