"""Trains the pocket checkpoint: data, recipes and the measured table. Nothing here is imported by the worker."""
