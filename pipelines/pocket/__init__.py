"""A built-in checkpoint of the real architecture, small enough for a CPU, trained in this repository."""
