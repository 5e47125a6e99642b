"""The parts of scripts/bench_sharding.py."""
