"""The output folder of a job: what is written there, by whom, and how it survives."""
