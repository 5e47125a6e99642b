"""Where the time goes: intervals on lanes, on one clock for all ranks."""
