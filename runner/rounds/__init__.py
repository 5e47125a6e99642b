"""Calls of one request that do not depend on each other: side by side over ranks, or in one pass; tiles likewise."""
