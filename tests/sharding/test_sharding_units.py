"""Which modules are gathered together: read off live modules and their code, in one process, without weights."""

import accelerate
import diffusers
import pytest
import torch
import transformers
from torch import nn

from weights.blocks import find_units


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.kind = "full"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))

    def modulate(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if block.kind == "full" and block.linear.weight.dtype.is_floating_point and len(self.blocks) > 1:
                x = block(x)
        return x


def kept(model: nn.Module, *entry_points: str) -> list[str]:
    return sorted(find_units(model, entry_points or ("forward",)).kept_with_root)


def test_blocks_called_and_asked_about_are_units() -> None:
    units = find_units(Stack())
    assert list(units.blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    assert not units.kept_with_root


class CallsPart(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.blocks[0].norm(x))


class ReadsWeight(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.blocks[-1].linear.bias)


class CallsMethodOfWeight(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.blocks[0].linear.weight.dtype) + self.blocks[1].linear.bias.mean())


class ReadsInLoop(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (block, _) in enumerate(zip(self.blocks[1:], range(2), strict=False)):
            x = block.norm(x) * i
        return x


class ReadsThroughName(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.blocks[0]
        norm = first.norm
        return super().forward(norm(x))


class ReadsInMethod(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self._embed(x))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0].modulate(x)


class BypassesHooks(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[2].forward(x)


class ReadsFromGrandparent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack(self.stack.blocks[1].norm(x))


class ReadsInDecode(Stack):
    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1].norm(x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (CallsPart, ["blocks.0"]),
        (ReadsWeight, ["blocks.2"]),
        (CallsMethodOfWeight, ["blocks.1"]),
        (ReadsInLoop, ["blocks.1", "blocks.2"]),
        (ReadsThroughName, ["blocks.0"]),
        (ReadsInMethod, ["blocks.0"]),
        (BypassesHooks, ["blocks.2"]),
        (ReadsFromGrandparent, ["stack.blocks.1"]),
        (ReadsInDecode, []),
    ],
)
def test_a_block_read_from_outside_is_kept_with_the_root(model: type[nn.Module], expected: list[str]) -> None:
    assert kept(model()) == expected


def test_methods_other_than_forward_are_followed_when_named() -> None:
    assert kept(ReadsInDecode(), "forward", "decode") == ["blocks.1"]


def test_a_block_that_shares_a_parameter_is_kept_with_the_root() -> None:
    stack = Stack()
    stack.blocks[1].linear.weight = stack.blocks[2].linear.weight
    assert kept(stack) == ["blocks.1", "blocks.2"]


def test_a_block_that_shares_a_module_is_kept_with_the_root() -> None:
    stack = Stack()
    stack.blocks[0].norm = stack.blocks[2].norm
    stack.head = stack.blocks[1].linear
    assert kept(stack) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_block_used_twice_is_one_unit() -> None:
    stack = Stack()
    stack.blocks = nn.ModuleList([stack.blocks[0], stack.blocks[0], stack.blocks[1]])
    assert list(find_units(stack).blocks) == ["blocks.0", "blocks.2"]


def test_only_the_outermost_lists_count_and_lists_of_lists_are_opened() -> None:
    stack = Stack()
    stack.blocks[0].inner = nn.ModuleList([Block()])
    stack.grid = nn.ModuleList([nn.ModuleList([Block(), Block()]), nn.ModuleList([Block()])])
    lists = [list(blocks) for blocks in find_units(stack).lists]
    assert lists == [["blocks.0", "blocks.1", "blocks.2"], ["grid.0.0", "grid.0.1"], ["grid.1.0"]]


def on_meta(build: type[nn.Module], *args: object, **options: object) -> nn.Module:
    with accelerate.init_empty_weights(include_buffers=False):
        return build(*args, **options)


def test_dit_keeps_the_one_block_its_forward_reads() -> None:
    units = find_units(on_meta(diffusers.DiTTransformer2DModel))
    assert list(units.kept_with_root) == ["transformer_blocks.0"]
    assert "self.transformer_blocks[0].norm1.emb" in units.kept_with_root["transformer_blocks.0"]


def test_legacy_transformer_2d_keeps_the_one_block_its_forward_reads() -> None:
    model = on_meta(
        diffusers.Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        norm_type="ada_norm_zero",
        num_embeds_ada_norm=10,
    )
    assert kept(model) == ["transformer_blocks.0"]


@pytest.mark.parametrize(
    "name",
    [
        "AuraFlowTransformer2DModel",
        "AutoencoderKL",
        "AutoencoderKLWan",
        "ChromaTransformer2DModel",
        "CogVideoXTransformer3DModel",
        "FluxTransformer2DModel",
        "Flux2Transformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "Lumina2Transformer2DModel",
        "MochiTransformer3DModel",
        "PixArtTransformer2DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "UNet2DConditionModel",
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "ZImageTransformer2DModel",
    ],
)
def test_other_diffusers_models_keep_none(name: str) -> None:
    model = on_meta(getattr(diffusers, name))
    units = find_units(model, ("forward", "encode", "decode"))
    assert not units.kept_with_root
    in_blocks = sum(p.numel() for block in units.blocks.values() for p in block.parameters())
    assert in_blocks / sum(p.numel() for p in model.parameters()) > 0.9


@pytest.mark.parametrize(
    ("model", "config", "num_blocks"),
    [
        (transformers.T5EncoderModel, transformers.T5Config(), 6),
        (transformers.UMT5EncoderModel, transformers.UMT5Config(), 8),
        (transformers.CLIPTextModel, transformers.CLIPTextConfig(), 12),
        (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig(), 12),
        (transformers.LlamaModel, transformers.LlamaConfig(num_hidden_layers=2), 2),
        (transformers.Gemma2Model, transformers.Gemma2Config(num_hidden_layers=2), 2),
        (transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig(), 112),
    ],
)
def test_text_encoders_keep_none(model: type[nn.Module], config: object, num_blocks: int) -> None:
    units = find_units(on_meta(model, config))
    assert not units.kept_with_root
    assert len(units.blocks) == num_blocks
