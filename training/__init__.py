"""Trains the pocket checkpoint and measures it. Nothing here is imported by the worker."""
