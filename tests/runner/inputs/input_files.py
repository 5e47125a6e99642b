"""One file of each kind, and what diffusers, soundfile, numpy and safetensors make of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import soundfile
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.utils import export_to_video, load_image, load_video
from PIL import Image
from safetensors.torch import load_file, save_file

from runner.config import load_config
from runner.inputs.arguments import Arguments, arguments_of
from runner.job.prompts import Prompt
from runner.job.requests import read_job, with_inputs

TURNED = 6  # Exif: the camera was held upright


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16), **save: Any) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size[1], size[0], 3)).save(path, **save)
    return path


def draw_turned(path: Path, seed: int = 5) -> Path:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    return draw(path, seed, exif=exif, quality=95)


def film(path: Path, seed: int = 0, num_frames: int = 5, size: tuple[int, int] = (32, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(noise(seed + i, size[1], size[0], 3)) for i in range(num_frames)]
    return Path(export_to_video(frames, str(path), fps=8))


def sing(path: Path, seed: int = 0, num_samples: int = 400) -> Path:
    soundfile.write(path, np.random.default_rng(seed).uniform(-1, 1, (num_samples, 2)), 8000)
    return path


def store(path: Path, seed: int = 0, **tensors: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(seed)
    save_file(tensors or {"anything": torch.randn(2, 3, generator=generator).bfloat16()}, path)
    return path


def keep(path: Path, seed: int = 0) -> Path:
    np.save(path, np.random.default_rng(seed).standard_normal((3, 2)))
    return path


def read_sound(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0].T.copy())[None]


def read_tensor(path: Path) -> torch.Tensor:
    (tensor,) = load_file(path).values()
    return tensor


@dataclass(frozen=True)
class Kind:
    """An argument of a pipeline that takes a file of this kind. `value` is what is written for it, of the file's name;
    `oracle` what the pipeline should get for a file at a path."""

    pipeline: str
    argument: str
    file: str
    write: Callable[..., Path]
    oracle: Callable[[Path], Any]
    value: Callable[[str], Any] = lambda name: name
    required: tuple[str, ...] = ()


def _picture(path: Path) -> Image.Image:
    return load_image(str(path))


def _frames(path: Path) -> list[Image.Image]:
    return load_video(str(path))


KINDS = {
    "picture": Kind("FluxImg2ImgPipeline", "image", "a.png", draw, _picture),
    "turned photo": Kind("FluxImg2ImgPipeline", "image", "a.jpg", draw_turned, _picture),
    "webp": Kind("FluxImg2ImgPipeline", "image", "a.webp", draw, _picture),
    "mask, said to be a tensor": Kind("FluxFillPipeline", "image", "m.png", draw, _picture),
    "list of pictures": Kind(
        "QwenImageEditPlusPipeline", "image", "a.png", draw, lambda p: [_picture(p)] * 2, lambda name: [name, name]
    ),
    "picture in a list": Kind("CogVideoXVideoToVideoPipeline", "video", "a.png", draw, lambda p: [_picture(p)]),
    "lists of lists": Kind(
        "VisualClozePipeline",
        "image",
        "a.png",
        draw,
        lambda p: [[_picture(p), _picture(p)], [_picture(p), None]],
        lambda name: [[name, name], [name, None]],
    ),
    "video": Kind("WanVideoToVideoPipeline", "video", "clip.mp4", film, _frames),
    "video, said to be a tensor": Kind("AnyFlowPipeline", "video", "clip.mp4", film, _frames),
    "conditions": Kind(
        "LTXConditionPipeline",
        "conditions",
        "a.png",
        draw,
        lambda p: [LTXVideoCondition(image=_picture(p), frame_index=8)],
        lambda name: [{"image": name, "frame_index": 8}],
    ),
    "video condition": Kind(
        "LTX2ConditionPipeline",
        "conditions",
        "clip.mp4",
        film,
        lambda p: LTX2VideoCondition(frames=_frames(p), strength=0.5),
        lambda name: {"frames": name, "strength": 0.5},
    ),
    "segments": Kind(
        "LTXI2VLongMultiPromptPipeline",
        "prompt_segments",
        "a.png",
        draw,
        lambda p: [{"text": "a fox", "image": _picture(p)}],
        lambda name: [{"text": "a fox", "image": {"file": name}}],
    ),
    "annotation in quotes": Kind("LTXI2VLongMultiPromptPipeline", "cond_image", "a.png", draw, _picture),
    "path or text": Kind("SanaWMPipeline", "image", "a.png", draw, _picture),
    "sound": Kind("StableAudioPipeline", "initial_audio_waveforms", "a.wav", sing, read_sound),
    "flac": Kind("AceStepPipeline", "src_audio", "a.flac", sing, read_sound),
    "mp3": Kind("StableAudio3AudioToAudioPipeline", "audio", "a.mp3", sing, read_sound),
    "sound of a rare format": Kind("StableAudioPipeline", "initial_audio_waveforms", "a.w64", sing, read_sound),
    "sound, no batch": Kind(
        "AceStepPipeline",
        "reference_audio",
        "a.wav",
        sing,
        lambda p: read_sound(p)[0],
        lambda name: {"file": name, "batch": False},
    ),
    "array": Kind("SanaWMPipeline", "c2w", "c.npy", keep, np.load, required=("image",)),
    "array for a tensor": Kind("FluxPipeline", "latents", "c.npy", keep, lambda p: torch.from_numpy(np.load(p))),
    "tensor": Kind("FluxPipeline", "prompt_embeds", "e.safetensors", store, read_tensor),
}


def arguments(kind: Kind) -> Arguments:
    return arguments_of(getattr(diffusers, kind.pipeline))


def read(kind: Kind, *words: str, file: Path | None = None) -> list[Prompt]:
    """The prompts of a job of this config file and these words, with their files looked at."""
    job = load_config(file, words).job
    return with_inputs(read_job(job), job, arguments(kind), None)[0]


def is_same(one: Any, other: Any) -> bool:
    """Bit for bit, type for type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, Image.Image):
        return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other) and not one.is_inference()
    if hasattr(one, "__dataclass_fields__"):
        return is_same(vars(one), vars(other))
    return bool(one == other)
