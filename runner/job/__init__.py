"""From prompts to finished requests."""
