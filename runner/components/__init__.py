"""A pipeline's parts: found in the directory, loaded and placed, and what each is, read off the live module."""
