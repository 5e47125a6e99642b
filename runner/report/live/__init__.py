"""What rank 0 tells of a job while it runs: for a terminal, for a log, and for whoever looks at the output folder."""
