"""The run's configuration: defaults <- YAML file <- key=value, checked by OmegaConf's structured configs.

The dataclasses are the schema, and each field's `help` is its line in `--help`.
"""

import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING as MISSING_VALUE
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.errors import UserError
from runner.request import parse_part


class Share(Enum):
    """Who holds a component's weights: every rank all of them, or each rank its part."""

    replicate = "replicate"
    shard = "shard"


class Rest(Enum):
    """Where weights wait between uses."""

    device = "device"
    host = "host"
    disk = "disk"


class Leave(Enum):
    """What leaves inference mode where weights move: the component's calls, or only the movement."""

    component = "component"
    weights = "weights"


class Format(Enum):
    """auto: png or mp4; npy: the pipeline's own float array, for exact comparison."""

    auto = "auto"
    npy = "npy"


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
    path: str = _option("a diffusers directory (the one that holds model_index.json)", default="models/emoji-dit")
    dtype: DType = _option("float32, bfloat16 or float16", default=DType.float32)


@dataclass
class PlacementConfig:
    share: Share = _option("replicate (each rank has the whole component) or shard", default=Share.replicate)
    rest: Rest = _option("where weights wait between uses: device, host or disk", default=Rest.device)
    resident_blocks: int = _option("blocks that never leave the device, spread evenly", default=0)
    window: int | str = _option("blocks on the device at once where offloaded, or all", default=2)
    prefetch: int = _option("blocks gathered ahead of the running one, where sharded", default=1)
    reshard_after_forward: bool = _option("free a sharded block after it ran; false keeps it gathered", default=True)


_KIND = {"share": "replicate", "rest": "device"}
# The options that a placement has besides share and rest. What is not here cannot be built: sharded weights on disk.
KNOBS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("replicate", "device"): (),
    ("replicate", "host"): ("resident_blocks", "window"),
    ("replicate", "disk"): ("resident_blocks", "window"),
    ("shard", "device"): ("resident_blocks", "prefetch", "reshard_after_forward"),
    ("shard", "host"): ("resident_blocks", "prefetch", "reshard_after_forward"),
}


@dataclass
class MeshConfig:
    shard: int | None = _option("ranks that share one copy of a sharded component", default=None)
    replicate: int | None = _option("copies of a sharded component; shard x replicate = ranks", default=None)


@dataclass
class ExecutionConfig:
    leave_inference: Leave = _option("component or weights: what leaves inference mode", default=Leave.component)


@dataclass
class AdapterConfig:
    path: str = MISSING_VALUE
    weight: float = 1.0
    name: str | None = None
    components: list[str] = field(default_factory=list)


@dataclass
class LoraConfig:
    mode: LoraMode = _option("merge (into the weights, where they rest) or dynamic", default=LoraMode.merge)
    adapters: list[AdapterConfig] = _option(
        "list of {path, weight: 1, name: of the file, components: as in the file}; also lora: [...]",
        default_factory=list,
    )


@dataclass
class JobConfig:
    prompt: Any = _option("one prompt, or a list of prompts; a class label for class-conditional models", default=None)
    prompts: str | None = _option(
        "a file instead of job.prompt: .txt (one a line), .jsonl or .csv (fields override the call)", default=None
    )
    images_per_prompt: int = _option("pictures of each prompt; the seed counts up", default=1)
    seed: int = _option("seed of the first picture of each prompt", default=0)
    call: dict[str, Any] = _option("job.call.<argument>: an argument of the pipeline's own call", default_factory=dict)
    format: Format = _option("auto (png, or mp4 for video) or npy (the pipeline's float array)", default=Format.auto)
    fps: int = _option("frames a second of a video", default=16)
    output: str = _option("folder of the results", default="outputs")
    part: str | None = _option("i/n: make only part i of n of the requests, in <output>/part-i-of-n", default=None)
    on_change: OnChange = _option(
        "refuse a folder that another recipe filled, or new_folder: go on in <output>-2", default=OnChange.refuse
    )
    max_attempts: int = _option("runs that may try a request that fails, or ends the job", default=3)
    timeout_seconds: float = _option(
        "longest silence of a rank, or stay in one component call, before the job ends", default=600.0
    )
    grace_seconds: float = _option("time for the wave in progress after a request to stop", default=25.0)
    resume_inside: bool | str = _option(
        "keep a log of a request's calls to go on inside it: true, false, or auto (where it takes a minute)",
        default="auto",
    )
    stop_file: str | None = _option("the job stops politely when this file appears [<output>/stop]", default=None)
    state_file: str | None = _option("a file for the word that run.json has as its state, for scripts", default=None)
    lock: bool = _option("hold the output folder against a second job", default=True)
    lock_wait_seconds: float = _option("how long to wait for a folder that is held, before refusing", default=0.0)
    profile: bool = _option("write a Chrome trace for each rank under <output>/profile", default=False)

    @property
    def resumes_inside(self) -> str:
        """`resume_inside` as true, false or auto, whether it came as a word or as YAML's truth value."""
        return str(self.resume_inside).lower()


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    placement: dict[str, PlacementConfig] = field(default_factory=lambda: {"default": PlacementConfig()})
    mesh: MeshConfig = field(default_factory=MeshConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    job: JobConfig = field(default_factory=JobConfig)


def load_config(file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Merge defaults, the YAML file and the `key=value` overrides.

    Raises UserError: an unreadable file, an unknown key (with the nearest right one), a value of the wrong type.
    """
    layers = [OmegaConf.create({}) if file is None else _read_yaml(file)]
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise UserError(f"{override!r} is not key=value, for example job.seed=7")
        try:
            layers.append(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise UserError(f"cannot read {override!r}: {str(error).splitlines()[0]}") from error
    known = [key for key, _, _ in describe()]
    for layer in layers:
        if OmegaConf.is_list(layer.get("lora")):
            layer.lora = {"adapters": layer.lora}
        for key in _keys(OmegaConf.to_container(layer)):
            _check_key(key, known)
    try:
        given = typing.cast(DictConfig, OmegaConf.merge(*layers))
        if isinstance(given.get("placement"), DictConfig):
            given.placement = _inherit(OmegaConf.to_container(given.placement))
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), given)
        config = typing.cast(RunConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise UserError(where + str(error).splitlines()[0]) from error
    _check_values(config)
    return config


def to_yaml(config: RunConfig) -> str:
    """The merged configuration, as a YAML file that load_config reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe() -> Iterator[tuple[str, str, str]]:
    """Every key with its default and its one line of help."""
    for section in fields(RunConfig):
        schema: Any = PlacementConfig if section.name == "placement" else section.type
        prefix = "placement.<component>" if section.name == "placement" else section.name
        assert is_dataclass(schema)
        for option in fields(schema):
            key = f"{prefix}.{option.name}" + (".<argument>" if option.name == "call" else "")
            default = "" if option.default in (MISSING, None) else option.default
            yield key, str(default.value if isinstance(default, Enum) else default), option.metadata["help"]


def adapter_name(adapter: AdapterConfig) -> str:
    """Its name, or that of its file or folder without the ending."""
    return adapter.name or Path(adapter.path).stem


def _read_yaml(file: Path) -> Any:
    try:
        layer = OmegaConf.load(file)
    except FileNotFoundError:
        raise UserError(f"no config file {file}; the recipes are in configs/") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read config {file}: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise UserError(f"config {file} is not a mapping of sections such as model: and job:")
    return layer


def _inherit(placement: Any) -> Any:
    """What a component's placement does not say comes from placement.default, as far as its kind has such an option."""
    default = placement.get("default") or {}
    merged = {}
    for name, own in placement.items():
        kind = [str((own or {}).get(key, default.get(key, "")) or first) for key, first in _KIND.items()]
        options = (*_KIND, *KNOBS.get((kind[0], kind[1]), ()))
        merged[name] = {**{key: value for key, value in default.items() if key in options}, **(own or {})}
    return {**merged, **({"default": default} if "default" in placement else {})}


def _keys(layer: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys down to the leaves; arguments of the call are leaves whatever they hold."""
    for key, value in layer.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value and not dotted.startswith("job.call."):
            yield from _keys(value, f"{dotted}.")
        else:
            yield dotted


def _check_key(key: str, known: Sequence[str]) -> None:
    parts = key.split(".")
    if parts[0] == "job" and parts[1:2] == ["call"]:
        return
    candidates = [k.replace("<component>", parts[1] if len(parts) > 2 else "default") for k in known]
    sections = {c.rsplit(".", i)[0] for c in candidates for i in range(1, 3)}
    if key in candidates or key in sections:
        return
    nearest = difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown key {key!r}; the nearest is {nearest!r} (--help lists them all)")


def _check_values(config: RunConfig) -> None:
    if config.job.images_per_prompt < 1:
        raise UserError(f"job.images_per_prompt is {config.job.images_per_prompt}; it must be at least 1")
    if not -(2**63) <= config.job.seed < 2**63:
        raise UserError(f"job.seed is {config.job.seed}; it must fit 64 bits")
    if config.job.fps < 1:
        raise UserError(f"job.fps is {config.job.fps}; it must be at least 1")
    if config.job.max_attempts < 1:
        raise UserError(f"job.max_attempts is {config.job.max_attempts}; it must be at least 1")
    if config.job.timeout_seconds <= 0 or config.job.grace_seconds < 0:
        raise UserError("job.timeout_seconds must be above 0, and job.grace_seconds 0 or more")
    if config.job.resumes_inside not in ("true", "false", "auto"):
        raise UserError(f"job.resume_inside is {config.job.resume_inside!r}; it must be true, false or auto")
    parse_part(config.job.part)
    names = [adapter_name(adapter) for adapter in config.lora.adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"lora.adapters: there are two of {', '.join(twice)}; give each a name of its own")
    for adapter in config.lora.adapters:
        if not math.isfinite(adapter.weight):
            raise UserError(f"lora.adapters: {adapter_name(adapter)} has weight {adapter.weight}; it must be finite")
    for name, placement in config.placement.items():
        if placement.resident_blocks < 0:
            raise UserError(f"placement.{name}.resident_blocks is {placement.resident_blocks}; it must be 0 or more")
        if placement.prefetch < 0:
            raise UserError(f"placement.{name}.prefetch is {placement.prefetch}; it must be 0 or more")
        if placement.window != "all" and not (isinstance(placement.window, int) and placement.window >= 1):
            raise UserError(f"placement.{name}.window is {placement.window!r}; it must be 1 or more, or all")
