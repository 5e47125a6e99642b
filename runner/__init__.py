"""The runner: opens a diffusers pipeline, places its components, and turns requests into pictures."""
