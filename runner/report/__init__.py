"""What a run says of itself: run.json, the table of --explain, and the summary line."""
