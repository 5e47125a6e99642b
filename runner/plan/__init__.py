"""What a job takes before it runs: bytes, seconds, what fits, and which placement is the best."""
