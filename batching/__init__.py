"""Who runs with whom, and the one thread that runs them. Knows ``core`` and nothing else of ours."""
