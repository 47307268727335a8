"""What may be asked of a vision model, and at what size a picture enters it."""

import pytest

from core.errors import RequestError
from core.pipeline import BatchKey
from core.request import Image, Task
from core.spec import PipelineSpec
from core.vision import Ask, Box, Depth, Detect, Embed, Segment, SegmentPrompt
from core.vision_spec import VisionSpec

GREY = Image(pixels=b"\x80" * (40 * 30 * 3), width=40, height=30)
SQUARE = VisionSpec(fit="square", side=112, max_prompts=4, max_prompt_chars=40, max_boxes=2)
SPEC = PipelineSpec(
    name="seer",
    factory="nowhere:load",
    source="builtin:seer",
    tasks=frozenset({Task.SEGMENT, Task.DETECT, Task.DEPTH}),
    vision=SQUARE,
)


def find(*texts: str, box: Box | None = None, **wishes: object) -> Segment:
    boxes = () if box is None else ((box, True),)
    prompts = tuple(SegmentPrompt(text=text, boxes=boxes) for text in texts)
    return Segment(prompts=prompts, **wishes)  # type: ignore[arg-type]


SEGMENTS: list[tuple[Segment, str, str]] = [
    (Segment(prompts=()), "prompts", "no prompt"),
    (find("a", "b", "c", "d", "e"), "prompts", "5 prompts are over the limit of 4"),
    (find("a", " "), "prompts", "is empty"),
    (find("a" * 41), "prompts", "41 characters together are over the limit of 40"),
    (find("\ud800"), "prompts", "half a character pair"),
    (find("a", threshold=1.5), "threshold", "1.5 is outside 0.0 to 1.0"),
    (find("a", threshold=float("nan")), "threshold", "outside"),
    (find("a", mask_threshold=-0.1), "mask_threshold", "outside"),
    (find("a", priors=(1.0, 2.0)), "priors", "2 weights for 1 prompts"),
    (find("a", priors=(-1.0,)), "priors", "outside"),
    (find("a", box=(0, 0, 41, 30)), "boxes", "not inside the picture of 40x30"),
    (find("a", box=(5, 5, 5, 9)), "boxes", "not inside"),
    (find("a", box=(float("nan"), 0, 9, 9)), "boxes", "not inside"),
    (
        Segment(prompts=(SegmentPrompt(boxes=(((0, 0, 9, 9), True),) * 3),)),
        "boxes",
        "3 boxes are over the limit of 2",
    ),
]
OTHERS: list[tuple[Ask, str, str]] = [
    (Detect(labels=()), "labels", "is empty"),
    (Detect(labels=("a", "")), "labels", "is empty"),
    (Detect(labels=("a",), box_threshold=2), "box_threshold", "outside"),
    (Detect(labels=("a",), text_threshold=float("inf")), "text_threshold", "outside"),
    (Depth(focal=0.0), "focal", "outside"),
    (Embed(), "task", "seer can depth and detect and segment and cannot embed"),
]


@pytest.mark.parametrize(("ask", "field", "words"), [*SEGMENTS, *OTHERS], ids=str)
def test_what_cannot_be_asked_is_refused_by_field_limit_and_value(ask: Ask, field: str, words: str) -> None:
    """Whoever reads it must know what to change."""
    with pytest.raises(RequestError) as refusal:
        SPEC.look(id="1", image=GREY, ask=ask)
    assert (refusal.value.code, refusal.value.param) == ("invalid_parameter", field)
    assert words in refusal.value.message


def test_a_look_is_one_step_at_the_size_of_entry() -> None:
    """The scheduler knows no other kind of work; what it counts must hold for this kind too."""
    request = SPEC.look(id="1", image=GREY, ask=find("cat"), timeout=5)
    assert (request.task, request.steps_run, request.guided) == (Task.SEGMENT, 1, False)
    assert (request.size, request.canvas, request.tokens) == ((40, 30), (112, 112), 49)
    assert (request.timeout, request.prompt, request.nbytes) == (5, "", 3600)
    assert SPEC.look(id="1", image=GREY, ask=find("cat", "dog", "car")).tokens == 3 * 49


def test_boxes_and_texts_do_not_share_a_forward() -> None:
    """They pass through different parts of the model."""
    text, box = find("cat"), find("cat", box=(1, 1, 9, 9))
    keys = [BatchKey.of(SPEC.look(id="1", image=GREY, ask=ask)) for ask in (text, box, find("dog"))]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_a_model_that_looks_makes_no_pictures() -> None:
    """The routes of pictures find every row in the same catalog."""
    with pytest.raises(RequestError, match="cannot edit"):
        SPEC.request(id="1", task=Task.EDIT, prompt="make it night", images=(GREY,))


def test_a_square_takes_any_aspect() -> None:
    """The model knows no other shape, so all pictures may share a forward."""
    assert {SQUARE.entry(size) for size in ((1, 9000), (640, 480), (112, 112))} == {(112, 112)}


@pytest.mark.parametrize(
    ("size", "entry"),
    [((504, 504), (504, 504)), ((1000, 500), (504, 252)), ((10, 5000), (14, 504)), ((33, 20), (504, 308))],
    ids=str,
)
def test_the_longer_side_is_brought_to_the_models(size: tuple[int, int], entry: tuple[int, int]) -> None:
    """Each side is rounded to whole patches, and has at least one."""
    assert VisionSpec(fit="longest", side=504, multiple=14).entry(size) == entry
