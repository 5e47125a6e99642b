"""Layerwise offload: weights wait in host memory or on disk, and are on the device before they are needed."""

from offload.away import WeightAway
from offload.copy_engine import CopyEngine
from offload.disk_store import DiskStore
from offload.edited_files import EditedFiles
from offload.engines import engine_for
from offload.host_store import HostStore
from offload.layerwise import offload
from offload.node import local_size, node_group, on_all_ranks
from offload.normal_mode import normal_mode
from offload.offloaded import Offloaded, is_offloaded, offloader_of
from offload.room import NoRoom
from offload.store import Edit, Store, StoreError
from offload.units import OUTSIDE, find_aliases, plan_units

__all__ = [
    "OUTSIDE",
    "CopyEngine",
    "DiskStore",
    "Edit",
    "EditedFiles",
    "HostStore",
    "NoRoom",
    "Offloaded",
    "Store",
    "StoreError",
    "WeightAway",
    "engine_for",
    "find_aliases",
    "is_offloaded",
    "local_size",
    "node_group",
    "normal_mode",
    "offload",
    "offloader_of",
    "on_all_ranks",
    "plan_units",
]
