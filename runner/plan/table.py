"""The plan as text: per component and rank what it takes, what a step costs, what fits."""

from collections.abc import Sequence

from runner.plan.machine import Machine, Rates, size
from runner.plan.needs import Needs, Part
from runner.plan.seconds import seconds_of
from runner.plan.work import Workload

_MB = 1e6


def memory_table(parts: Sequence[Part], needed: Needs, machine: Machine) -> str:
    """What each rank takes, and each node."""
    columns = ("weights", "window", "outside", "gathered", "activations", "peak", "host")
    rows: list[tuple[str, ...]] = [("stage", "component", "placement", *columns)]
    for part in parts:
        placed = part.placed
        on_host = placed.shared + machine.gpus * placed.slices
        figures = (placed.at_rest, placed.ring, placed.outside, placed.gathered, part.work.activations)
        cells = [size(value) if value else "-" for value in figures]
        peak = size(needed.by_part[part.name])
        rows.append((part.sizes.stage, part.name, shown(part), *cells, peak, size(on_host) if on_host else "-"))
    lines = aligned(rows)
    limit = f" of {size(machine.device_memory)}" if not machine.is_host else ""
    turns = f", of them {size(needed.turns)} for the turns of a group" if needed.turns else ""
    reserved = f", {size(machine.reserved)} for the device's context and libraries" if machine.reserved else ""
    lines += [
        "",
        f"each of {machine.ranks} rank(s): {size(needed.device)}{limit}, in calls of {needed.at}{turns}{reserved}",
        f"each of {machine.nodes} node(s): {size(needed.host)} of {size(machine.host_memory)} of host memory, "
        f"{size(needed.page_locked)} of it page-locked",
    ]
    return "\n".join(lines)


def seconds_table(parts: Sequence[Part], workload: Workload, rates: Rates, machine: Machine, group: int) -> str:
    """A call of each component, as it is in a group: what moves, and how long it takes."""
    head = ("component", "calls", "TFLOP", "to device", "exchanged", "disk", "seconds", "waits for")
    rows: list[tuple[str, ...]] = [head]
    for part in parts:
        placed, one = part.placed, seconds_of(part, rates, machine, group)
        moved = (placed.to_device, placed.exchanged, placed.read * machine.gpus)
        cells = [f"{value / _MB / group:,.0f} MB" if value else "-" for value in moved]
        flops = f"{part.work.flops / 1e12:.2f}" if part.work.flops else "-"
        rows.append((part.name, str(part.work.calls), flops, *cells, f"{one.whole:.3f}", one.limit))
    lines = aligned(rows)
    steps = [part for part in parts if part.sizes.stage == "denoise" and part.work.calls]
    seconds = sum(part.work.calls * seconds_of(part, rates, machine, group).whole for part in steps)
    read = sum(part.work.calls * part.placed.read for part in steps) * machine.gpus / group
    if workload.steps:
        lines += [
            "",
            f"a step: {seconds / workload.steps:.3f} s, {read / workload.steps / _MB:,.0f} MB of disk reads a node, "
            f"for each of {group} request(s) made together",
        ]
    return "\n".join(lines)


def shown(part: Part) -> str:
    placement = part.placement
    share = f"shard {part.shard}" if part.shard > 1 or placement.share.value == "shard" else placement.share.value
    knobs = f", {placement.resident_blocks} stay" if placement.resident_blocks else ""
    if part.is_offloaded and placement.window != 2:
        knobs += f", window {placement.window}"
    return f"{share}, {placement.rest.value}{knobs}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
