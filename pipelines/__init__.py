"""Pipelines that diffusers does not have, over parts that it has. A model's directory never brings code of its own."""

from pipelines.pixart import PixArtSigmaImg2ImgPipeline

__all__ = ["PixArtSigmaImg2ImgPipeline"]
