"""Tiny models with random weights, each with a call that returns its outputs. The oracle is the model, unsharded."""

from collections.abc import Callable

import diffusers
import torch
import transformers
from torch import nn

Outputs = list[torch.Tensor]


def build(name: str, device: torch.device = torch.device("cpu")) -> nn.Module:  # noqa: B008 (immutable)
    """The model with the same random weights on every rank."""
    torch.manual_seed(0)
    model = _MODELS[name][0]()
    for parameter in model.parameters():  # also those that start at zero or one, so that each is seen in the output
        parameter.data.normal_(std=0.2)
    return in_own_dtype(model, name).eval().to(device)


def in_own_dtype(model: nn.Module, name: str) -> nn.Module:
    """Wan in bf16 with the parameters it keeps in fp32; the others as they are."""
    if name == "wan":
        for parameter_name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(wan_dtype(parameter_name))
    return model


def wan_dtype(parameter_name: str) -> torch.dtype:
    kept = set(diffusers.WanTransformer3DModel._keep_in_fp32_modules or ())
    return torch.float32 if kept & set(parameter_name.split(".")) else torch.bfloat16


def call(name: str, model: nn.Module, device: torch.device = torch.device("cpu")) -> Outputs:  # noqa: B008 (immutable)
    """The model's outputs for inputs that are the same each time."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    with torch.device(device):
        return _MODELS[name][1](model, noise)


Noise = Callable[..., torch.Tensor]


def _flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def _call_flux(model: nn.Module, noise: Noise) -> Outputs:
    return model(
        hidden_states=noise(1, 16, 4),
        encoder_hidden_states=noise(1, 8, 32),
        pooled_projections=noise(1, 32),
        timestep=torch.tensor([0.5]),
        img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(8, 3),
        return_dict=False,
    )


def _sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    )


def _call_sd3(model: nn.Module, noise: Noise) -> Outputs:
    return model(noise(1, 4, 8, 8), noise(1, 5, 16), noise(1, 16), torch.tensor([3]), return_dict=False)


def _dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def _call_dit(model: nn.Module, noise: Noise) -> Outputs:
    return model(noise(1, 4, 8, 8), torch.tensor([3]), torch.tensor([1]), return_dict=False)


def _pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=8,
        norm_num_groups=1,
    )


def _call_pixart(model: nn.Module, noise: Noise) -> Outputs:
    return model(
        noise(1, 4, 8, 8),
        noise(1, 5, 8),
        torch.tensor([3]),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )


def _wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _call_wan(model: nn.Module, noise: Noise) -> Outputs:
    latents, text = noise(1, 4, 1, 8, 8).bfloat16(), noise(1, 4, 16).bfloat16()
    return model(latents, torch.tensor([5]), text, return_dict=False)


def _t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config)


def _clip() -> nn.Module:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=7,
        )
    )


def _call_text_encoder(model: nn.Module, noise: Noise) -> Outputs:
    output = model(torch.arange(8)[None], output_hidden_states=True)
    return [output.last_hidden_state, *output.hidden_states]


def _vae() -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )


def _call_vae(model: nn.Module, noise: Noise) -> Outputs:
    return [model.decode(noise(1, 4, 4, 4)).sample, model.encode(noise(1, 3, 8, 8)).latent_dist.mean]


_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Noise], Outputs]]] = {
    "flux": (_flux, _call_flux),
    "sd3": (_sd3, _call_sd3),
    "dit": (_dit, _call_dit),
    "pixart": (_pixart, _call_pixart),
    "wan": (_wan, _call_wan),
    "t5": (_t5, _call_text_encoder),
    "clip": (_clip, _call_text_encoder),
    "vae": (_vae, _call_vae),
}
MODELS = tuple(_MODELS)
