"""Reads an adapter from a safetensors file, in the formats of diffusers, peft, and what diffusers can convert."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from lora.adapter import Adapter, AdapterError, LowRank, few, first_line
from lora.adapter_file import Tensors, identity, load, odd_tensors, weights_file
from lora.checking import check_component, unsupported_parts
from lora.naming import OF_TEXT_ENCODER, Reading, asked_for, by_conversion, by_keys
from lora.settings import settings_of, unsupported_settings
from weights.modes import normal_mode


def read_adapter(
    path: Path,
    modules: Mapping[str, nn.Module],
    *,
    components: Sequence[str] = (),
    pipeline_class: type | None = None,
) -> Adapter:
    """Read an adapter and check all of it against the modules it is for, which are not touched.

    Args:
        path: A `.safetensors` file, or a folder that holds one, with peft's `adapter_config.json` or without.
        modules: The pipeline's modules by component name, in any placement: only names, types and sizes are read.
        components: Which of them to adapt. By default those that the file's keys name, or the one that they fit.
            Where the file has factors for a single component, they go into each one named here; otherwise the others'
            factors are left out.
        pipeline_class: The pipeline's class, whose `lora_state_dict` converts formats of other trainers, if it has one.

    Every tensor of the file is applied, belongs to a component that was not asked for, or changes nothing (a layer with
    a factor of zeros); else AdapterError names it. It is raised, naming keys, also for a pickle, an unreadable file,
    parts that are no LoRA factors (DoRA, biases), keys that match nothing, ranks, shapes or values that cannot be.
    """
    file = weights_file(Path(path))
    with normal_mode():
        tensors, config = load(file)
        if problems := odd_tensors(tensors) or [*unsupported_parts(tensors), *unsupported_settings(config)]:
            raise AdapterError(file, problems)
        reading = _best_reading(file, asked_for(tensors, components, modules), modules, components, pipeline_class)
        problems = _unplaced(reading, len(tensors), modules)
        changes: dict[str, dict[str, LowRank]] = {}
        for component, part in _chosen(file, reading, components, modules).items():
            source = component if component in reading.parts else next(iter(reading.parts))
            module = modules[component]
            settings, wrong = settings_of(config, source, sum(1 for _ in module.modules()))
            if not wrong:
                changes[component], wrong = check_component(part, module, settings)
            problems += [f"{component}: {problem}" for problem in wrong]
    if problems:
        raise AdapterError(file, problems, reading.read_as)
    return Adapter(file, identity(file), reading.read_as, changes)


def adapter_identity(path: Path) -> str:
    """The identity that `read_adapter` would give the adapter, from its bytes alone."""
    return identity(weights_file(Path(path)))


def _best_reading(
    file: Path,
    tensors: Tensors,
    modules: Mapping[str, nn.Module],
    components: Sequence[str],
    pipeline_class: type | None,
) -> Reading:
    """diffusers' own reading where nothing is amiss with it, else the one with less amiss."""
    readings: list[Reading] = []
    failure: Exception | None = None
    keys = list(tensors)
    if hasattr(pipeline_class, "lora_state_dict"):
        try:
            readings.append(by_conversion(tensors, modules, pipeline_class))
        except MemoryError:
            raise
        except Exception as error:
            # Converters assert, index and search in whatever names a file has: anything they raise is about the file.
            failure = error
        if readings and not readings[0].num_misfits(modules):
            return readings[0]
        again, _ = load(file)  # a converter scales in place
        tensors = {key: again[key] for key in keys}
    readings.append(by_keys(tensors, modules, components))
    best = min(readings, key=lambda reading: reading.num_misfits(modules))
    if failure is not None and best.num_misfits(modules) >= len(keys):
        what = f"diffusers cannot convert it to the names of {', '.join(modules)}"
        raise AdapterError(file, [f"{what} ({first_line(failure)}): {few(sorted(keys))}"]) from failure
    if best.ambiguous:
        raise AdapterError(file, [f"it fits {few(best.ambiguous)} alike; say which in components"], best.read_as)
    return best


def _unplaced(reading: Reading, num_tensors: int, modules: Mapping[str, nn.Module]) -> list[str]:
    """What a reading did not place, as lines."""
    problems = []
    if reading.strangers or not reading.parts:
        what = f"{len(reading.strangers)} keys match nothing in {', '.join(modules)}"
        problems.append(f"{what}: {few(sorted(reading.strangers))}")
    if reading.lost:
        fix = "take them out of the file"
        if any(map(OF_TEXT_ENCODER.match, reading.lost)):
            fix += ", or set the adapter's components to what else it is for"
        problems.append(
            f"{len(reading.lost)} of {num_tensors} tensors come to nothing when diffusers converts it ({fix}): "
            + few(sorted(reading.lost))
        )
    return problems


def _chosen(
    file: Path, reading: Reading, components: Sequence[str], modules: Mapping[str, nn.Module]
) -> dict[str, Tensors]:
    parts = reading.parts
    if unknown := [name for name in components if name not in modules]:
        raise AdapterError(file, [f"the model has no {few(unknown)}; it has {', '.join(modules)}"])
    if not components or not parts:
        return parts
    if len(parts) == 1:
        (part,) = parts.values()
        return dict.fromkeys(components, part)
    if absent := [name for name in components if name not in parts]:
        raise AdapterError(file, [f"it has nothing for {few(absent)}; it has {', '.join(parts)}"], reading.read_as)
    return {name: parts[name] for name in components}
