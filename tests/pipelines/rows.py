"""The registry's rows by what tests can do with them."""

from pipelines.registry import SPECS

PAINTERS = tuple(spec for spec in SPECS if spec.vision is None)  # make and edit pictures
BUILT_IN = tuple(spec for spec in SPECS if spec.source.startswith("builtin:"))  # run here, without a download
PAINTERS_HERE = tuple(spec for spec in BUILT_IN if spec.vision is None)
