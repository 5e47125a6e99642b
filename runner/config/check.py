"""Values that cannot be, found when all layers are merged: nothing is read or loaded for it."""

import os
from typing import Any

from runner.config.schema import AUTO, DYNAMIC, OPS, PlacementConfig, Rest, RunConfig, Share, adapter_name
from runner.errors import UserError
from runner.reading.schema import is_text, leaves
from runner.reading.values import check_seeds, check_value, shown
from runner.request import parse_part

LONGEST = 10**9  # seconds: thirty years, where timers still take the number
LARGEST_GROUP = 1000  # requests that one rank makes together
PATHS = (".path", ".prompts", ".output", ".bandwidths", "_file")


def check_values(config: RunConfig, plain: dict[str, Any]) -> None:
    """Raises UserError. `plain`: the same configuration in plain values."""
    for key, annotation, value in leaves(RunConfig, plain):
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
    if not isinstance(job.profile, bool) and job.profile != OPS:
        raise UserError(f"job.profile is {job.profile!r}; it must be true, false or {OPS}")
    compiled = config.execution.compile
    if not isinstance(compiled, bool) and compiled != DYNAMIC:
        raise UserError(f"execution.compile is {compiled!r}; it must be true, false or {DYNAMIC}")
    for name in ("guidance", "context"):
        ranks = getattr(config.mesh, name)
        if ranks != AUTO and not (isinstance(ranks, int) and ranks >= 1):
            raise UserError(f"mesh.{name} is {ranks!r}; it must be at least 1, or auto")
    parse_part(job.part)
    names = [adapter_name(adapter) for adapter in config.lora.adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"lora.adapters: there are two of {', '.join(twice)}; give each a name of its own")
    for name, placement in config.placement.items():
        _check_placement(f"placement.{name}", placement)


def _check_placement(key: str, placement: PlacementConfig) -> None:
    if placement.rest is Rest.auto and placement.share is not Share.replicate:
        raise UserError(f"{key}: rest=auto chooses the share too; leave share={placement.share.value} out")
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
