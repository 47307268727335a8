"""A registry row turns a caller's wishes into a request that is correct by construction."""

from dataclasses import replace
from typing import Any

import pytest

from core.errors import RequestError
from core.request import SEED_MAX, Image, InferenceRequest, Task
from core.spec import PipelineSpec

SPEC = PipelineSpec(name="row", factory="m:f", source="builtin:row")
# Begins at the picture itself, and has everything that a row can have.
RICH = replace(
    SPEC,
    name="rich",
    tasks=frozenset({Task.GENERATE, Task.EDIT}),
    steps=20,
    strength=0.3,
    max_images=1,
    masks=True,
    step_cache=True,
    adapters=frozenset({"comic", "pencil", "neon", "clay", "ink"}),
)


def picture(width: int = 300, height: int = 200) -> Image:
    return Image(pixels=bytes(3 * width * height), width=width, height=height)


PICTURE = picture()
MASK = picture()


def ask(spec: PipelineSpec = SPEC, **wishes: Any) -> InferenceRequest:
    """An edit of one picture unless the wishes say otherwise."""
    given: dict[str, Any] = {"id": "r", "task": Task.EDIT, "prompt": "p", "images": (PICTURE,)}
    return spec.request(**(given | wishes))


def generate(spec: PipelineSpec = RICH, **wishes: Any) -> InferenceRequest:
    return ask(spec, **({"task": Task.GENERATE, "images": ()} | wishes))


def refused(spec: PipelineSpec, **wishes: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(spec, **wishes)
    return caught.value


def test_open_wishes_become_the_rows_defaults() -> None:
    """Nothing is left to be decided after this point."""
    request = ask()
    assert (request.steps, request.cfg, request.negative_prompt) == (40, 4.0, " ")
    assert (request.strength, request.mask, request.adapters, request.step_cache) == (None, None, (), 0.0)
    assert request.guided
    assert 0 <= request.seed < 2**32


@pytest.mark.parametrize("seed", [None, -1])
def test_absent_and_minus_one_seed_are_random(seed: int | None) -> None:
    """Clients send either for "any"; two such requests are two pictures."""
    assert ask(seed=seed).seed != ask(seed=seed).seed


def test_a_negative_prompt_may_be_none_at_all() -> None:
    """Steering away from no text and from an empty one give different pictures with some models."""
    blank = replace(RICH, negative_prompt=None)
    assert generate(blank).negative_prompt is None
    assert generate(blank, negative_prompt="").negative_prompt == ""


def test_a_size_that_is_no_multiple_runs_on_a_larger_canvas() -> None:
    """Existing clients send 1000x667; they get exactly that back."""
    request = ask(width=1000, height=667)
    assert request.size == (1000, 667)
    assert request.canvas == (1008, 672)


def test_one_given_side_takes_the_other_from_the_input() -> None:
    """A width alone must not distort the picture."""
    assert ask(width=600).size == (600, 400)


@pytest.mark.parametrize("size", [(800, 100), (100, 790)])
def test_a_long_thin_input_keeps_its_aspect(size: tuple[int, int]) -> None:
    """Clamping one side alone would squeeze the picture."""
    width, height = ask(images=(picture(*size),)).size
    assert max(width, height) <= SPEC.max_side
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_a_picture_of_a_text_is_square_unless_told() -> None:
    """There is no input to take the aspect from."""
    assert generate().size == (1024, 1024)
    assert generate(width=512).size == (512, 512)
    assert generate(width=512, height=768).size == (512, 768)


def test_the_first_picture_gives_the_size_of_a_masked_edit() -> None:
    """The mask lies on it, whatever else the prompt refers to."""
    pictures = (PICTURE, picture(200, 300))
    spec = replace(SPEC, masks=True)
    assert ask(spec, images=pictures, width=300).size == (300, 450)
    assert ask(spec, images=pictures, mask=MASK, width=300).size == (300, 200)


WISHES_OVER_A_LIMIT: list[tuple[dict[str, object], str, tuple[str, ...]]] = [
    ({"prompt": "  "}, "prompt", ("empty",)),
    ({"prompt": "x" * 4001}, "prompt", ("4001", "4000", "shorten")),
    ({"negative_prompt": "x" * 4001}, "negative_prompt", ("4001", "4000", "shorten")),
    ({"prompt": "\ud800"}, "prompt", ("valid Unicode",)),
    ({"width": 4096, "height": 512}, "width", ("4096", "2048")),
    ({"height": 1, "width": 512}, "height", (" 1 ", "64")),
    ({"width": 2048, "height": 64}, "width", ("2048x64", "8:1", "closer")),
    ({"steps": 0}, "steps", (" 0 ", "1 to 100")),
    ({"steps": 101}, "steps", ("101", "1 to 100")),
    ({"cfg": float("nan")}, "cfg", ("nan", "0.0 to 20.0")),
    ({"cfg": 20.5}, "cfg", ("20.5", "0.0 to 20.0")),
    ({"seed": -2}, "seed", ("-2", "0 to")),
    ({"seed": SEED_MAX + 1}, "seed", (str(SEED_MAX),)),
    ({"seed": 10**400}, "seed", (str(SEED_MAX),)),
    ({"timeout": float("nan")}, "timeout", ("nan", "86400")),
    ({"images": ()}, "images", ("1 to 3", "not 0", "send one")),
    ({"images": (PICTURE,) * 4}, "images", ("1 to 3", "not 4", "leave some out")),
    ({"images": (picture(100, 1),)}, "images", ("100x1", "8:1")),
    ({"task": Task.DEPTH}, "task", ("depth", "edit", "another model")),
    ({"task": Task.GENERATE, "images": ()}, "task", ("generate", "edit", "another model")),
    ({"mask": MASK}, "mask", ("row takes no mask", "leave it out")),
    ({"strength": 0.5}, "strength", ("row takes no strength", "prompt")),
    ({"adapters": [("comic", 1.0)]}, "loras", ("row has no loras", "leave them out")),
    ({"step_cache": 0.1}, "step_cache", ("row computes every step", "leave step_cache out")),
]


@pytest.mark.parametrize(("wishes", "field", "words"), WISHES_OVER_A_LIMIT)
def test_a_wish_over_a_limit_is_refused_by_name(
    wishes: dict[str, object], field: str, words: tuple[str, ...]
) -> None:
    """The message names limit, value and remedy, so that the caller can mend the request."""
    error = refused(SPEC, **wishes)
    assert (error.code, error.param) == ("invalid_parameter", field)
    assert all(word in error.message for word in words), error.message
    assert ";" in error.message, "a remedy comes last"


@pytest.mark.parametrize(
    ("wishes", "field", "words"),
    [
        ({"task": Task.GENERATE}, "images", ("text alone", "leave images out")),
        ({"task": Task.GENERATE, "images": (), "mask": MASK}, "mask", ("needs a picture", "send one")),
        ({"task": Task.GENERATE, "images": (), "strength": 0.5}, "strength", ("needs a picture", "send one")),
        ({"mask": picture(200, 300)}, "mask", ("200x300", "300x200", "resize")),
        ({"strength": -0.1}, "strength", ("-0.1", "0.0 to 1.0")),
        ({"strength": 1.1}, "strength", ("1.1", "0.0 to 1.0")),
        ({"strength": float("nan")}, "strength", ("nan", "0.0 to 1.0")),
        ({"strength": 0.1, "steps": 9}, "strength", ("0.1", "9 steps", "raise one")),
        ({"strength": 0.0}, "strength", ("strength 0 ", "raise one")),
        ({"step_cache": 1.5}, "step_cache", ("1.5", "0.0 to 1.0")),
        ({"step_cache": float("nan")}, "step_cache", ("nan", "0.0 to 1.0")),
        ({"adapters": [("comik", 1.0)]}, "loras", ("rich", "did you mean 'comic'?")),
        ({"adapters": [("watercolour", 1.0)]}, "loras", ("known: clay, comic, ink, neon, pencil",)),
        ({"adapters": [("comic", 4.5)]}, "loras", ("scale 4.5", "-4 to 4")),
        ({"adapters": [("comic", float("nan"))]}, "loras", ("nan", "-4 to 4")),
        ({"adapters": [("comic", 1.0), ("comic", 0.5)]}, "loras", ("twice", "add up")),
        (
            {"adapters": [(name, 1.0) for name in sorted(RICH.adapters)]},
            "loras",
            ("5 loras", "limit of 4", "fewer"),
        ),
    ],
)
def test_what_a_rich_row_cannot_do_is_refused_by_name(
    wishes: dict[str, object], field: str, words: tuple[str, ...]
) -> None:
    """It can do nearly everything, so each of these is the caller's slip."""
    error = refused(RICH, **wishes)
    assert (error.code, error.param) == ("invalid_parameter", field)
    assert all(word in error.message for word in words), error.message
    assert ";" in error.message, "a remedy comes last"


def test_a_mask_of_the_pictures_size_is_taken() -> None:
    """The control of the refusals above; and it waits in memory like a picture."""
    request = ask(RICH, mask=MASK)
    assert request.mask is MASK
    assert request.nbytes - ask(RICH).nbytes == len(MASK.pixels)


def test_strength_is_the_part_of_the_schedule_that_is_run() -> None:
    """As in diffusers: int(steps * strength) of them, from the noised picture on."""
    assert (ask(RICH).strength, ask(RICH).steps_run) == (0.3, 6)
    assert ask(RICH, strength=0.55, steps=10).steps_run == 5
    assert ask(RICH, strength=1).steps_run == 20
    assert (generate().strength, generate().steps_run) == (None, 20)


def test_a_schedule_too_short_for_the_rows_strength_is_run_in_full() -> None:
    """A caller who named no strength must not be refused for it."""
    assert (ask(RICH, steps=3).strength, ask(RICH, steps=4).strength) == (1.0, 0.3)


def test_a_picture_to_begin_with_is_no_reference() -> None:
    """It is encoded at the canvas; only references have sizes of their own, and cost tokens."""
    assert ask(RICH, width=256, height=256).reference_sizes == ()
    assert ask(RICH, width=256, height=256).tokens == generate(width=256, height=256).tokens
    assert len(ask(images=(PICTURE, PICTURE)).reference_sizes) == 2
    assert ask(images=(PICTURE, PICTURE)).tokens > ask().tokens


def test_loras_come_in_one_order() -> None:
    """Two callers who name the same ones share a batch, whoever is named first."""
    one, other = ([("pencil", 1), ("comic", 0.5)], [("comic", 0.5), ("pencil", 1.0)])
    assert ask(RICH, adapters=one).adapters == ask(RICH, adapters=other).adapters
    assert ask(RICH, adapters=one).adapters == (("comic", 0.5), ("pencil", 1.0))
    assert ask(RICH, adapters=[("comic", -4.0)]).adapters == (("comic", -4.0),)


def test_a_precision_that_takes_no_lora_says_so() -> None:
    """In the words of whoever chose it: the operator's remedy is in them."""
    packed = replace(RICH, adapters_refused="4-bit weights take no loras; ask the operator for 8bit")
    error = refused(packed, adapters=[("comic", 1.0)])
    assert (error.param, error.message) == ("loras", "4-bit weights take no loras; ask the operator for 8bit")
    assert ask(packed).adapters == ()


def test_a_step_cache_is_off_unless_asked_for() -> None:
    """It trades likeness for time, which is the caller's choice."""
    assert (ask(RICH).step_cache, ask(RICH, step_cache=0).step_cache) == (0.0, 0.0)
    assert ask(RICH, step_cache=0.12).step_cache == 0.12


def test_few_lightning_steps_are_not_reused() -> None:
    """Each of them changes nearly everything."""
    fast = replace(RICH, lightning_steps=4)
    error = refused(fast, step_cache=0.1)
    assert error.param == "step_cache"
    assert all(word in error.message for word in ("4 Lightning steps", "leave step_cache out"))
    assert ask(fast, step_cache=0).step_cache == 0.0


def test_a_source_may_name_its_revision_and_the_operator_another() -> None:
    """``@`` is ours: the hub is told repository and revision apart."""
    row, pinned = replace(SPEC, source="Org/Real"), replace(SPEC, source="Org/Real@v2")
    assert row.source_at() == ("Org/Real", None)
    assert row.source_at("v3") == ("Org/Real", "v3")
    assert pinned.source_at() == ("Org/Real", "v2")
    assert pinned.source_at("v3") == ("Org/Real", "v3")
