"""How a job ends when it cannot go on: what is watched, what is said, and who hears of it."""
