"""What the three modes are put together from."""

import pytest

from serverless.modes import _host, intake_options
from settings import Settings


@pytest.mark.parametrize(
    ("url", "pair"),
    [
        ("https://s3.example", "s3.example:443"),
        ("http://s3.example/x", "s3.example:80"),
        ("http://10.0.0.1:9000", "10.0.0.1:9000"),
        ("http://[fd00::1]:9000/x", "[fd00::1]:9000"),
        ("https://[fd00::1]", "[fd00::1]:443"),
    ],
)
def test_a_bucket_is_named_as_the_guarded_client_names_hosts(url: str, pair: str) -> None:
    """Under another name the operator's own private bucket would be refused."""
    assert _host(url) == pair


@pytest.mark.parametrize("wanted", [True, False])
def test_png_metadata_reaches_whoever_writes_pngs(wanted: bool) -> None:
    """A setting for privacy that nobody reads would be worse than none."""
    assert intake_options(Settings(_env_file=None, png_metadata=wanted)).png_metadata is wanted
