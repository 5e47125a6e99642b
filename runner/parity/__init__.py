"""The parity certificate: requests of a job made again without the runner, and what of them was equal."""
