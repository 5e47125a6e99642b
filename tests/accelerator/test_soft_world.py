"""The world on a machine with two software accelerators: which one a rank has, what groups carry, what is refused."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.processes import run_command

ROOT = Path(__file__).resolve().parents[2]
# Joins as the launcher's variables say, and tells what it found; "alone": torch has no collectives of the device.
JOIN = """
import json, sys
import torch, torch.distributed as dist
from runner.components.groups import build_groups
from runner.config import load_config
from runner.errors import UserError
from runner.world import joined_world
from tests.accelerator import soft

soft.register()
if "alone" in sys.argv:
    del dist.Backend.default_device_backend_map["soft"]

def refusal(action):
    try:
        action()
    except UserError as error:
        return str(error)

def join():
    with joined_world(10.0) as world:
        sharded = load_config(None, ["placement.default.share=shard"])
        told["device"] = str(world.device)
        told["current"] = torch.accelerator.current_device_index()
        told["backends"] = dist.get_backend_config(dist.group.WORLD)
        told["messages"] = dist.get_backend(world.control)
        told["timeouts"] = {
            device.type: dist.group.WORLD._get_backend(device).options._timeout.total_seconds()
            for device in dist.group.WORLD._device_types
        }
        told["gathered"] = world.gather("a word")
        told["sharded"] = refusal(lambda: build_groups(sharded, ["transformer"], world))

told = {}
told["refused"] = refusal(join)
print(json.dumps(told))
"""


def join(*words: str, rank: int = 0, size: int = 1, local_rank: int = 0) -> dict[str, Any]:
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "MASTER_ADDR": "localhost", "MASTER_PORT": 0}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in place.items()}}
    command = [sys.executable, "-c", JOIN, *words]
    ended = run_command(command, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_rank_has_the_device_of_its_place_on_the_node(soft_is_built: None) -> None:
    told = join(local_rank=1)
    assert told["refused"] is None and told["sharded"] is None
    assert (told["device"], told["current"], told["backends"]) == ("soft:1", 1, "cpu:gloo,soft:softgloo")
    assert told["messages"] == "gloo" and told["gathered"] == ["a word"], "never over the device's group"
    assert told["timeouts"]["soft"] >= 3 * 10, "the watch, at 10 s, speaks first"


def test_more_ranks_than_devices_are_refused_by_name(soft_is_built: None) -> None:
    told = join(rank=2, size=3, local_rank=2)
    assert told["refused"] == (
        "rank 2 is number 3 on its node, which has 2 soft device(s): start 2 rank(s) a node (--nproc-per-node 2)"
    )


def test_a_device_without_collectives_has_gloo_for_messages_and_shards_nothing(soft_is_built: None) -> None:
    told = join("alone")
    assert told["refused"] is None and told["device"] == "soft:0" and told["gathered"] == ["a word"]
    assert "soft" not in told["backends"]
    assert told["sharded"] == "share=shard: torch has no collectives on soft; use share=replicate"
