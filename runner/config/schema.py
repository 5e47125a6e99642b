"""What can be configured: the dataclasses are the schema, and each field's `help` is its line in `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING


class Share(Enum):
    """Who holds a component's weights: every rank all of them, or each rank its part."""

    replicate = "replicate"
    shard = "shard"


class Rest(Enum):
    """Where weights wait between uses. auto: the planner chooses the whole placement."""

    device = "device"
    host = "host"
    disk = "disk"
    auto = "auto"


class Leave(Enum):
    """What leaves inference mode where weights move: the component's calls, or only the movement."""

    component = "component"
    weights = "weights"


class Format(Enum):
    """auto: png, mp4, wav; npy: the pipeline's own float arrays, for exact comparison; latent: what decoders get."""

    auto = "auto"
    npy = "npy"
    latent = "latent"


class Audio(Enum):
    """wav: 32-bit float, the samples as they are; flac: 24 bits. In a clip: AAC, or FLAC."""

    wav = "wav"
    flac = "flac"


class OnChange(Enum):
    """What to do in a folder that another recipe made pictures in."""

    refuse = "refuse"
    new_folder = "new_folder"


class LoraMode(Enum):
    """Adapters merged into the weights where they rest, or applied beside the layers in each call."""

    merge = "merge"
    dynamic = "dynamic"


class DType(Enum):
    """Of the weights and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _option(help: str, **kwargs: Any) -> Any:
    return field(metadata={"help": help}, **kwargs)


@dataclass
class ModelConfig:
    path: str = _option("a diffusers directory (with a model_index.json, or a modular one)", default="models/emoji-dit")
    dtype: DType = _option("float32, bfloat16 or float16", default=DType.float32)
    pipeline: str | None = _option(
        "another class of diffusers over the same components, such as FluxImg2ImgPipeline", default=None
    )
    variant: str | None = _option("read the weight files of this variant where there are any: fp16", default=None)
    workflow: str | None = _option(
        "the one task that a modular pipeline is loaded for, such as text2image [all of them]", default=None
    )


@dataclass
class ComponentConfig:
    path: str | None = _option("a folder that the component comes from, or that adds one (a ControlNet)", default=None)
    variant: str | None = _option("read the weight files of this variant, such as fp16", default=None)
    dtype: DType | None = _option("of this component [model.dtype]", default=None)
    attention: str | None = _option("an attention backend of diffusers, such as flash or sage", default=None)
    tiling: Any = _option("true, or a mapping of its settings: the VAE works tile by tile", default=None)
    slicing: Any = _option("true: the VAE works picture by picture", default=None)
    settings: dict[str, Any] = _option(
        "a setting of a scheduler or guider, such as flow_shift; class: another one that takes its configuration",
        default_factory=dict,
    )


@dataclass
class PlacementConfig:
    share: Share = _option("replicate (each rank has the whole component) or shard", default=Share.replicate)
    rest: Rest = _option(
        "where weights wait between uses: device, host or disk; auto: the plan chooses the component's placement",
        default=Rest.device,
    )
    resident_blocks: int = _option("blocks that never leave the device, spread evenly", default=0)
    window: int | str = _option("blocks on the device at once where offloaded, or all", default=2)
    prefetch: int = _option("blocks gathered ahead of the running one, where sharded", default=1)
    reshard_after_forward: bool = _option("free a sharded block after it ran; false keeps it gathered", default=True)


DYNAMIC = "dynamic"
AUTO = "auto"  # of the mesh: as is quickest for the job
OPS = "ops"  # job.profile: with what torch's profiler sees
OF_A_COMPONENT = {"components": ComponentConfig, "placement": PlacementConfig}
OWN_KEYS = tuple(ComponentConfig.__dataclass_fields__)  # what is not among them is a scheduler's setting
# The options that a placement has besides share and rest.
KNOBS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("replicate", "device"): (),
    ("replicate", "host"): ("resident_blocks", "window"),
    ("replicate", "disk"): ("resident_blocks", "window"),
    ("replicate", "auto"): (),
    ("shard", "device"): ("resident_blocks", "prefetch", "reshard_after_forward"),
    ("shard", "host"): ("resident_blocks", "prefetch", "reshard_after_forward"),
    ("shard", "disk"): ("resident_blocks", "window"),
}


@dataclass
class MeshConfig:
    shard: int | None = _option("ranks that share one copy of a sharded component", default=None)
    replicate: int | None = _option("copies of a sharded component; shard x replicate = ranks", default=None)
    guidance: int | str = _option(
        "ranks that share out the calls of one request that do not depend on each other; auto: where requests are few",
        default=1,
    )
    context: int | str = _option(
        "ranks that share the tokens of each denoiser call; part of the recipe; auto: where requests are few, and the "
        "plan is tested",
        default=1,
    )


@dataclass
class ExecutionConfig:
    leave_inference: Leave = _option("component or weights: what leaves inference mode", default=Leave.component)
    tf32: bool | None = _option("TF32 for float32 on cuda: true, false, or as torch has it", default=None)
    bandwidths: str | None = _option(
        "speeds that scripts/plan.py --calibrate measured, for what rest=auto chooses [assumed ones]", default=None
    )
    compile: bool | str = _option(
        "torch.compile for the blocks of what denoises: true (a graph for each shape) or dynamic (one for all)",
        default=False,
    )


@dataclass
class AdapterConfig:
    path: str = MISSING
    strength: float = 1.0
    name: str | None = None
    components: list[str] = field(default_factory=list)


@dataclass
class LoraConfig:
    mode: LoraMode = _option("merge (into the weights, where they rest) or dynamic", default=LoraMode.merge)
    adapters: list[AdapterConfig] = _option(
        "list of {path, strength: 1, name: of the file, components: as in the file}; also lora: [...]",
        default_factory=list,
    )


@dataclass
class VideoConfig:
    codec: str = _option("an encoder of ffmpeg's, checked before the model is loaded", default="libx264")
    crf: int | None = _option("the codec's constant quality, less is better [18 for libx264]", default=None)


@dataclass
class JobConfig:
    prompt: Any = _option("one prompt, or a list of prompts; a class label for class-conditional models", default=None)
    prompts: str | None = _option(
        "a file instead of job.prompt: .txt (one a line), .jsonl or .csv (fields override the call)", default=None
    )
    images_per_prompt: int = _option("pictures of each prompt; the seed counts up", default=1)
    seed: int = _option("seed of the first picture of each prompt", default=0)
    call: dict[str, Any] = _option(
        "job.call.<argument>: an argument of the pipeline's own call, a file by its path", default_factory=dict
    )
    format: Format = _option(
        "auto (png, mp4, wav), npy (the pipeline's float arrays) or latent (what its decoders get)", default=Format.auto
    )
    fps: float | None = _option("frames a second of a video where the pipeline does not say [16]", default=None)
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: Audio = _option("wav (32-bit float) or flac (24 bits)", default=Audio.wav)
    output: str = _option("folder of the results", default="outputs")
    part: str | None = _option("i/n: make only part i of n of the requests, in <output>/part-i-of-n", default=None)
    on_change: OnChange = _option(
        "refuse a folder that another recipe filled, or new_folder: go on in <output>-2", default=OnChange.refuse
    )
    max_attempts: int = _option("runs that may try a request that fails, or ends the job", default=3)
    timeout_seconds: float = _option(
        "longest silence of a rank, or stay in one component call, before the job ends", default=600.0
    )
    grace_seconds: float = _option("time for what is being made, after a request to stop", default=25.0)
    group: int | str = _option(
        "requests that a rank makes together: weights that move come up once for all of them; auto measures",
        default="auto",
    )
    resume_inside: bool | str = _option(
        "keep a log of a request's calls to go on inside it: true, false, or auto (where it takes a minute)",
        default="auto",
    )
    stop_file: str | None = _option("the job stops politely when this file appears [<output>/stop]", default=None)
    state_file: str | None = _option("a file for the word that run.json has as its state, for scripts", default=None)
    lock: bool = _option("hold the output folder against a second job", default=True)
    lock_wait_seconds: float = _option("how long to wait for a folder that is held, before refusing", default=0.0)
    report: bool = _option("write report.html, and a small picture of each result for it", default=True)
    profile: bool | str = _option(
        "write traces under <output>/profile: true, false, or ops (with each operator and kernel, for a short job)",
        default=False,
    )


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    components: dict[str, ComponentConfig] = field(default_factory=dict)
    placement: dict[str, PlacementConfig] = field(default_factory=lambda: {"default": PlacementConfig()})
    mesh: MeshConfig = field(default_factory=MeshConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    job: JobConfig = field(default_factory=JobConfig)


def adapter_name(adapter: AdapterConfig) -> str:
    """Its name, or that of its folder, or of its file without the ending. A version is no ending: `style-v1.5`."""
    return adapter.name or Path(adapter.path).name.removesuffix(".safetensors") or adapter.path
