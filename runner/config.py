"""The run's configuration: defaults <- YAML files <- key=value, checked by OmegaConf's structured configs.

The dataclasses are the schema, and each field's `help` is its line in `--help`.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import MISSING as MISSING_VALUE

from runner.errors import UserError
from runner.reading.layers import escaped, mapped, merge
from runner.reading.plain_yaml import NotYaml, dump, read
from runner.reading.schema import annotation_of, is_text, leaves, nearest
from runner.reading.text_file import read_text
from runner.reading.values import check_seeds, check_value, shown
from runner.reading.words import value_of
from runner.request import parse_part

LARGEST_FILE = 1 << 20  # bytes of a config file
LONGEST = 10**9  # seconds: thirty years, where timers still take the number
LARGEST_GROUP = 1000  # requests that one rank makes together
PATHS = (".path", ".prompts", ".output", "_file")


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
    rest: Rest = _option("where weights wait between uses: device, host or disk", default=Rest.device)
    resident_blocks: int = _option("blocks that never leave the device, spread evenly", default=0)
    window: int | str = _option("blocks on the device at once where offloaded, or all", default=2)
    prefetch: int = _option("blocks gathered ahead of the running one, where sharded", default=1)
    reshard_after_forward: bool = _option("free a sharded block after it ran; false keeps it gathered", default=True)


_OF_A_COMPONENT = {"components": ComponentConfig, "placement": PlacementConfig}
_OWN_KEYS = tuple(ComponentConfig.__dataclass_fields__)  # what is not among them is a scheduler's setting
_KIND = {"share": "replicate", "rest": "device"}
# The options that a placement has besides share and rest.
KNOBS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("replicate", "device"): (),
    ("replicate", "host"): ("resident_blocks", "window"),
    ("replicate", "disk"): ("resident_blocks", "window"),
    ("shard", "device"): ("resident_blocks", "prefetch", "reshard_after_forward"),
    ("shard", "host"): ("resident_blocks", "prefetch", "reshard_after_forward"),
    ("shard", "disk"): ("resident_blocks", "window"),
}


@dataclass
class MeshConfig:
    shard: int | None = _option("ranks that share one copy of a sharded component", default=None)
    replicate: int | None = _option("copies of a sharded component; shard x replicate = ranks", default=None)


@dataclass
class ExecutionConfig:
    leave_inference: Leave = _option("component or weights: what leaves inference mode", default=Leave.component)
    tf32: bool | None = _option("TF32 for float32 on cuda: true, false, or as torch has it", default=None)


@dataclass
class AdapterConfig:
    path: str = MISSING_VALUE
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
    grace_seconds: float = _option("time for the wave in progress after a request to stop", default=25.0)
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
    profile: bool = _option("write a Chrome trace for each rank under <output>/profile", default=False)


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    components: dict[str, ComponentConfig] = field(default_factory=dict)
    placement: dict[str, PlacementConfig] = field(default_factory=lambda: {"default": PlacementConfig()})
    mesh: MeshConfig = field(default_factory=MeshConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    job: JobConfig = field(default_factory=JobConfig)


def load_config(file: Path | None, words: Sequence[str], over: Sequence[Path] = ()) -> RunConfig:
    """Merge defaults, the YAML file, those laid `over` it (what changes from machine to machine) and the `key=value`
    words, whose values runner/reading/words.py explains.

    In a file ${key} stands for another key's value, and \\${ for a ${ of the text; in words a ${ is a ${.
    Raises UserError: an unreadable file, an unknown key (with the nearest right one), a value that cannot be.
    """
    files = [] if file is None else [file, *over]
    layers = [{}, *map(_read_file, files), *map(_read_word, words)]
    config = merge(RunConfig, layers, {"placement": _inherited})
    _check_values(config)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration in plain values, each text as it was typed."""
    return asdict(mapped(config, lambda value: value.name if isinstance(value, Enum) else value))


def to_yaml(config: RunConfig) -> str:
    """The merged configuration, as a YAML file that load_config reads back as the same."""
    return dump(mapped(to_dict(config), escaped))


def describe() -> Iterator[tuple[str, str, str]]:
    """Every key with its default and its one line of help."""
    for section in fields(RunConfig):
        schema: Any = _OF_A_COMPONENT.get(section.name, section.type)
        prefix = f"{section.name}.<component>" if section.name in _OF_A_COMPONENT else section.name
        yield from _described(prefix, schema)


def _described(prefix: str, schema: Any) -> Iterator[tuple[str, str, str]]:
    assert is_dataclass(schema)
    for option in fields(schema):
        key = f"{prefix}.{option.name}" + (".<argument>" if option.name == "call" else "")
        key = f"{prefix}.<setting>" if option.name == "settings" else key
        if is_dataclass(option.type):
            yield from _described(key, option.type)
        else:
            default = "" if option.default in (MISSING, None) else option.default
            yield key, str(default.value if isinstance(default, Enum) else default), option.metadata["help"]


def adapter_name(adapter: AdapterConfig) -> str:
    """Its name, or that of its folder, or of its file without the ending. A version is no ending: `style-v1.5`."""
    return adapter.name or Path(adapter.path).name.removesuffix(".safetensors") or adapter.path


def _read_file(file: Path) -> dict[str, Any]:
    try:
        layer = read(read_text(file, "config file", LARGEST_FILE))
    except NotYaml as error:
        raise UserError(f"{file}:{error.line}: {error}") from error
    if not isinstance(layer, dict | None):
        raise UserError(f"config file {file} is {shown(layer)}, and no mapping of sections such as model: and job:")
    try:
        # A section whose keys are all commented out says nothing.
        return _checked({name: section for name, section in (layer or {}).items() if section is not None})
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _read_word(word: str) -> dict[str, Any]:
    key, equals, typed = word.partition("=")
    if not equals or not key:
        raise UserError(f"{shown(word)} is not key=value, for example job.seed=7")
    section, *names = key.split(".")
    if section == "components" and len(names) == 2 and names[1] not in _OWN_KEYS:
        key = f"{section}.{names[0]}.settings.{names[1]}"
    annotation = annotation_of(RunConfig, key)
    if annotation is None:
        _refuse_key(key)
    layer = mapped(value_of(key, typed, annotation), escaped)
    for name in reversed(key.split(".")):
        layer = {name: layer}
    return _checked(layer)


def _checked(layer: dict[str, Any]) -> dict[str, Any]:
    """The layer, with the short forms of `lora` and of a component's settings written out.

    Raises UserError: an unknown key, a value that no key takes, a text that YAML reads as something else.
    """
    lora = layer.get("lora")
    for adapter in lora if isinstance(lora, list) else [lora]:
        if isinstance(adapter, str):
            raise UserError(f"lora: {shown(adapter)} is no adapter; each is a mapping, {{path: {adapter}}}")
    if isinstance(lora, list):
        layer = {**layer, "lora": {"adapters": lora}}
    if isinstance(components := layer.get("components"), dict):
        layer = {**layer, "components": {name: _settings_apart(one) for name, one in components.items()}}
    for key, annotation, value in leaves(RunConfig, layer):
        if annotation is None:
            _refuse_key(key)
        check_value(value, key)  # and once more after merging, which resolves references
        if is_text(annotation) and isinstance(value, bool | float):
            raise UserError(f"{key} is a text, which YAML reads as {value}; put it in quotes")
    return layer


def _settings_apart(component: Any) -> Any:
    """`flow_shift: 3` of a scheduler is short for `settings: {flow_shift: 3}`. Its class knows which there are."""
    if not isinstance(component, dict):
        return component
    settings = {name: value for name, value in component.items() if name not in _OWN_KEYS}
    own = {name: value for name, value in component.items() if name in _OWN_KEYS}
    written = own.get("settings", {})
    return {**own, "settings": {**written, **settings}} if settings and isinstance(written, dict) else own


# What diffusers has loaders for, and the runner has not: by a part of the key that one would look for.
_NOT_LOADED = {"ip_adapter": "adapters that take pictures", "textual_inversion": "textual inversions"}


def _refuse_key(key: str) -> NoReturn:
    section, *names = key.split(".")
    for part, what in _NOT_LOADED.items():
        if part in key:
            raise UserError(f"unknown key {shown(key)}: {what} are not loaded; adapters that are, are under lora")
    if annotation_of(RunConfig, key) is not None:
        raise UserError(f"{key!r} is one name with dots in it; in a file, write {section}: and the rest below it")
    known = [known.replace("<component>", names[0] if len(names) > 1 else "default") for known, _, _ in describe()]
    if key.startswith("lora.adapters[") and names[-1:] == ["weight"]:
        raise UserError(
            f"unknown key {shown(key)}: how much of an adapter is added is its strength; write strength: 0.8"
        )
    known += [f"lora.adapters[0].{option.name}" for option in fields(AdapterConfig)]
    near, argument = nearest(key, known), ""
    if section == "job" and len(names) == 1 and not difflib.get_close_matches(key, [near], cutoff=0.85):
        argument = f"; an argument of the pipeline's own call is job.call.{names[0]}"
    raise UserError(f"unknown key {shown(key)}; the nearest is {near!r}{argument} (--help lists them all)")


def _inherited(placement: dict[str, Any]) -> dict[str, Any]:
    """What a component's placement does not say comes from placement.default, as far as its kind has such an option."""
    default = placement.get("default") or {}
    merged = {}
    for name, own in placement.items():
        kind = [str((own or {}).get(key, default.get(key, "")) or first) for key, first in _KIND.items()]
        options = (*_KIND, *KNOBS.get((kind[0], kind[1]), ()))
        merged[name] = {**{key: value for key, value in default.items() if key in options}, **(own or {})}
    return {**merged, **({"default": default} if "default" in placement else {})}


def _check_values(config: RunConfig) -> None:
    for key, annotation, value in leaves(RunConfig, to_dict(config)):
        check_value(value, key)
        if is_text(annotation) and value is not None and not value.strip():
            raise UserError(f"{key} is an empty text; give it a value, or leave it out")
        if key.endswith(PATHS) and value is not None:
            _check_path(value, key)
    job = config.job
    if not 1 <= job.images_per_prompt <= 1_000_000:
        raise UserError(f"job.images_per_prompt is {job.images_per_prompt}; it must be at least 1, at most 1,000,000")
    check_seeds(job.seed, job.images_per_prompt, "job.seed")
    if job.fps is not None and job.fps < 1:
        raise UserError(f"job.fps is {job.fps:g}; it must be at least 1")
    if job.group != "auto" and not (isinstance(job.group, int) and 1 <= job.group <= LARGEST_GROUP):
        raise UserError(f"job.group is {job.group!r}; it must be at least 1, at most {LARGEST_GROUP}, or auto")
    if job.max_attempts < 1:
        raise UserError(f"job.max_attempts is {job.max_attempts}; it must be at least 1")
    for name, least in (
        ("timeout_seconds", "above 0"),
        ("grace_seconds", "0 or more"),
        ("lock_wait_seconds", "0 or more"),
    ):
        seconds = getattr(job, name)
        if not 0 <= seconds <= LONGEST or (seconds == 0 and least == "above 0"):
            raise UserError(f"job.{name} is {seconds}; it must be {least}, and at most {LONGEST:,}")
    if not isinstance(job.resume_inside, bool) and job.resume_inside != "auto":
        raise UserError(f"job.resume_inside is {job.resume_inside!r}; it must be true, false or auto")
    parse_part(job.part)
    names = [adapter_name(adapter) for adapter in config.lora.adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"lora.adapters: there are two of {', '.join(twice)}; give each a name of its own")
    for name, placement in config.placement.items():
        _check_placement(f"placement.{name}", placement)


def _check_placement(key: str, placement: PlacementConfig) -> None:
    if placement.resident_blocks < 0:
        raise UserError(f"{key}.resident_blocks is {placement.resident_blocks}; it must be 0 or more")
    if placement.prefetch < 0:
        raise UserError(f"{key}.prefetch is {placement.prefetch}; it must be 0 or more")
    if placement.window != "all" and not (isinstance(placement.window, int) and placement.window >= 1):
        raise UserError(f"{key}.window is {placement.window!r}; it must be 1 or more, or all")


def _check_path(path: str, key: str) -> None:
    """Before a library opens it: the kernel's limits, which a prompt that went into the wrong key exceeds."""
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > 255 or len(os.fsencode(path)) > 4095:
        raise UserError(f"{key} is {shown(path)}, and no path: it is too long")
