"""Requests that are made together: whose turn it is, what a pass takes, which go on when the job is to stop."""
