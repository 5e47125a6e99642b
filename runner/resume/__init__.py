"""Going on inside a request: its calls are logged, and answered from the log."""
