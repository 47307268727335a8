"""The parts of ``deploy/ray_serve.py``: one application on many machines, under Ray Serve."""
