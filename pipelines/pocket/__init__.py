"""A built-in checkpoint of the real architecture, small enough for a CPU. Its weights are random for now."""
