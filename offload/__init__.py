"""Layerwise offload: weights wait in host memory or on disk, and are on the device before they are needed."""

from offload.edits import Edit
from offload.engines import engine_for
from offload.engines.engine import CopyEngine
from offload.layerwise import offload
from offload.offloaded import Offloaded, is_offloaded, offloader_of
from offload.placeholder import WeightAway
from offload.stores.disk import DiskStore
from offload.stores.host import HostStore
from offload.stores.shared_disk import SharedDiskStore
from offload.stores.store import Store, StoreError
from offload.units import OUTSIDE, find_aliases, plan_units
from weights.room import NoRoom

__all__ = [
    "OUTSIDE",
    "CopyEngine",
    "DiskStore",
    "Edit",
    "HostStore",
    "NoRoom",
    "Offloaded",
    "SharedDiskStore",
    "Store",
    "StoreError",
    "WeightAway",
    "engine_for",
    "find_aliases",
    "is_offloaded",
    "offload",
    "offloader_of",
    "plan_units",
]
