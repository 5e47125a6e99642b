"""The options of a benchmark that has parts."""

import argparse
from collections.abc import Collection
from pathlib import Path


def parse(description: str | None, parts: Collection[str]) -> argparse.Namespace:
    """`part`: those asked for, or None; `rounds`: what the usual ones are multiplied with; `json`: where figures go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=parts, action="append", help="one part, or several (default: all)")
    parser.add_argument("--rounds", type=float, default=1.0, metavar="X", help="times the usual rounds (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    options = parser.parse_args()
    if options.rounds <= 0:
        parser.error(f"--rounds={options.rounds}; it multiplies the rounds, so it is more than 0")
    return options
