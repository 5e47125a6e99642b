"""Components that only their library's loader can build: their weights are more than the numbers in the files."""

from pathlib import Path

from runner.components.reading import file_errors
from weights.files import read_object


def only_whole(config_file: Path) -> str | None:
    """Why a component cannot be built without its library's loader, and so not be placed; None where it can."""
    with file_errors():
        config = read_object(config_file)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # text_config and the like
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method", "") if isinstance(part[key], dict) else ""
                return f"{config_file} has a {key} ({method or 'of an unknown method'}): quantised weights"
    return f"{config_file} has a fusion_config: fused modules" if config.get("fusion_config") else None
