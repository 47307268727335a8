"""A registry row turns a caller's wishes into a request that is correct by construction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.catalog import Catalog
from core.errors import RequestError, ServingError
from core.limits import fit_area
from core.pipeline import BatchKey
from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec

SPEC = PipelineSpec(name="row", factory="m:f", source="builtin:row", aliases=("Org/Row",))
PICTURE = Image(pixels=bytes(3 * 300 * 200), width=300, height=200, digest="d")


def ask(**wishes: object) -> InferenceRequest:
    given: dict[str, object] = {"id": "r", "task": Task.EDIT, "prompt": "p", "images": (PICTURE,)}
    return SPEC.request(**(given | wishes))  # type: ignore[arg-type]


def test_open_wishes_become_the_rows_defaults() -> None:
    """Nothing is left to be decided after this point."""
    request = ask()
    assert (request.steps, request.cfg, request.negative_prompt) == (40, 4.0, " ")
    assert request.guided
    assert 0 <= request.seed < 2**32


@pytest.mark.parametrize("seed", [None, -1])
def test_absent_and_minus_one_seed_are_random(seed: int | None) -> None:
    """Contract decision 4."""
    assert ask(seed=seed).seed != ask(seed=seed).seed


def test_a_size_that_is_no_multiple_runs_on_a_larger_canvas() -> None:
    """Existing clients send 1000x667; they get exactly that back."""
    request = ask(width=1000, height=667)
    assert request.size == (1000, 667)
    assert request.canvas == (1008, 672)


def test_one_given_side_takes_the_other_from_the_input() -> None:
    """A width alone must not distort the picture."""
    assert ask(width=600).size == (600, 400)


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"width": 4096, "height": 512}, "width"),
        ({"height": 1, "width": 512}, "height"),
        ({"steps": 0}, "steps"),
        ({"cfg": float("nan")}, "cfg"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"timeout": float("nan")}, "timeout"),
        ({"width": 2048, "height": 64}, "width"),
        ({"images": ()}, "images"),
        ({"images": (PICTURE,) * 4}, "images"),
        ({"images": (Image(pixels=bytes(300), width=100, height=1),)}, "images"),
        ({"task": Task.DEPTH}, "task"),
    ],
)
def test_a_wish_over_a_limit_is_refused_by_name(wishes: dict[str, object], field: str) -> None:
    """The message must let the caller mend the request."""
    with pytest.raises(RequestError) as caught:
        ask(**wishes)
    assert caught.value.code == "invalid_parameter"
    assert caught.value.param == field


def test_steps_and_cfg_divide_batches_only_when_rows_start_together() -> None:
    """Step-level joining exists so that they need not."""
    short, long = ask(steps=4, cfg=3.0), ask(steps=8, cfg=5.0)
    assert BatchKey.of(short) == BatchKey.of(long)
    assert BatchKey.of(short, together=True) != BatchKey.of(long, together=True)


@pytest.mark.parametrize("size", [(800, 100), (100, 790)])
def test_a_long_thin_input_keeps_its_aspect(size: tuple[int, int]) -> None:
    """Clamping one side alone would squeeze the picture."""
    picture = Image(pixels=bytes(3 * size[0] * size[1]), width=size[0], height=size[1])
    width, height = ask(images=(picture,)).size
    assert max(width, height) <= SPEC.max_side
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_pictures_without_a_digest_get_one_of_their_own() -> None:
    """Two users' pictures must never share cached latents; nor may one reshaped."""
    flat, tall = (Image(pixels=bytes(18), width=w, height=h) for w, h in ((3, 2), (2, 3)))
    assert flat.digest != tall.digest
    with pytest.raises(ValueError, match="0x0"):
        Image(pixels=b"", width=0, height=0)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_fitted_sizes_are_positive_multiples(width: int, height: int) -> None:
    """A zero side would crash the autoencoder."""
    fitted = fit_area((width, height), 1024 * 1024, 32)
    assert all(side >= 32 and side % 32 == 0 for side in fitted)


def test_catalog_knows_aliases_and_suggests_near_names() -> None:
    """Clients send hub ids; a typo deserves a hint."""
    catalog = Catalog([SPEC], default="row")
    assert catalog.get("org/row") is SPEC is catalog.get(None)
    with pytest.raises(RequestError, match="'row'"):
        catalog.get("rov")


def test_a_name_cannot_mean_two_models() -> None:
    """The later row would win in silence."""
    with pytest.raises(ValueError, match="both"):
        Catalog([SPEC, PipelineSpec(name="other", factory="m:f", source="Org/Row")], default="row")


def test_an_unknown_code_is_a_programming_fault() -> None:
    """Codes are wire-stable, so a new one must be added on purpose."""
    with pytest.raises(ValueError, match="no code"):
        RequestError("oops", "m")
    assert isinstance(RequestError("conflict", "m"), ServingError)
