"""report.html: what a job made and how it went, in one file that needs no network."""
