"""SAM 3 against transformers' own, and what is shared between prompts, pictures and requests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from transformers.models.sam3.modeling_sam3 import Sam3Model

from core.errors import ExecutionError, RequestError
from core.pipeline import BatchKey
from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.vision import Segment, Segmentation, SegmentPrompt
from pipelines.options import ModelOptions, Silent
from pipelines.registry import catalog
from pipelines.sam3 import Sam3, load
from pipelines.sam3_boxes import roi_align
from pipelines.sam3_reading import preprocess
from tests.pipelines import edits, looks
from tests.pipelines.fixtures import make_sam3 as official

SPEC = catalog("pocket-sam3").default
FLOATS = 1e-5  # between a row alone and in a batch
UPSTREAM = 3e-5  # between ours and transformers' own, which adds up in another order


@pytest.fixture(scope="module")
def pipeline(options: ModelOptions) -> Sam3:
    """Without a cache: nothing is remembered from one test to the next."""
    return load(SPEC, options, Silent())


@pytest.fixture
def remembering(options: ModelOptions) -> Sam3:
    return load(SPEC, replace(options, condition_cache_bytes=2**20), Silent())


@pytest.fixture(scope="module")
def kept() -> dict[str, NDArray[Any]]:
    with np.load(official.FILE) as file:
        return dict(file)


def segment(
    *texts: str, picture: int = 0, id: str = "look", image: Image | None = None, **ask: Any
) -> InferenceRequest:
    prompts = tuple(SegmentPrompt(text=text) for text in texts)
    wishes: dict[str, Any] = {"prompts": prompts, "threshold": 0.05} | ask
    return SPEC.look(id=id, image=image or edits.picture(picture, 96, 72), ask=Segment(**wishes))


def image_of(pixels: NDArray[Any]) -> Image:
    return Image(pixels=pixels.tobytes(), width=pixels.shape[1], height=pixels.shape[0])


def run(pipeline: Sam3, requests: Sequence[InferenceRequest]) -> list[Segmentation]:
    states = pipeline.prepare(requests)
    edits.run_to_end(pipeline, states)
    return [found_in(result) for result in pipeline.decode(states)]


def found_in(result: InferenceResult) -> Segmentation:
    assert isinstance(result.output, Segmentation)
    return result.output


def gap(one: Segmentation, other: Segmentation) -> float:
    """The largest between two scores or two corners in parts of the picture; infinite for other counts."""
    numbers = [
        [[*np.array(i.box) / (*s.size, *s.size), i.score] for found in s.prompts for i in found]
        for s in (one, other)
    ]
    if [len(found) for found in one.prompts] != [len(found) for found in other.prompts]:
        return float("inf")
    return float(np.abs(np.array(numbers[0]) - np.array(numbers[1])).max(initial=0.0))


def pixels_apart(one: Segmentation, other: Segmentation) -> float:
    """Part of the pixels of all masks that differ."""
    pairs = [
        looks.mask_of(a.mask) != looks.mask_of(b.mask)
        for found, again in zip(one.prompts, other.prompts, strict=True)
        for a, b in zip(found, again, strict=True)
    ]
    return float(np.mean(pairs)) if pairs else 0.0


@contextmanager
def pictures_encoded(pipeline: Sam3) -> Iterator[list[int]]:
    """Pictures in each call of the vision transformer, and texts in those of the text encoder, negative."""
    calls: list[int] = []
    model: Any = pipeline._model
    hooks = [
        model.vision_encoder.backbone.register_forward_pre_hook(
            lambda module, given: calls.append(len(given[0]))
        ),
        model.text_encoder.register_forward_pre_hook(
            lambda module, given, named: calls.append(-len(named["input_ids"])), with_kwargs=True
        ),
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("number", range(2))
def test_pictures_are_read_as_upstream_reads_them(kept: dict[str, NDArray[Any]], number: int) -> None:
    """One is made smaller and one larger. Without antialiasing, or resized as floats, they would differ."""
    image, want = image_of(kept[f"picture{number}"]), torch.from_numpy(kept[f"pixels{number}"])
    assert float((preprocess(image, (official.SIDE,) * 2) - want).abs().max()) < 1e-6
    raw = torch.from_numpy(kept[f"picture{number}"]).permute(2, 0, 1)[None]
    floats = interpolate(raw.float(), want.shape[1:], mode="bilinear", antialias=True)[0]
    assert float((floats / 127.5 - 1 - want).abs().max()) > 1e-3


def test_boxes_are_pooled_as_torchvision_pools_them(kept: dict[str, NDArray[Any]]) -> None:
    """A box of a tenth of a pixel, and the whole picture. Half a pixel aside it is another pooling."""
    features, boxes, want = (torch.from_numpy(kept[name]) for name in ("features", "rois", "pooled"))
    assert float((roi_align(features, boxes, 7) - want).abs().max()) < 1e-6
    assert float((roi_align(features, boxes - 0.5, 7) - want).abs().max()) > 0.1


def boxed(kept: dict[str, NDArray[Any]], number: int, labels: Sequence[int]) -> InferenceRequest:
    boxes = tuple(
        (tuple(box), bool(label)) for box, label in zip(official.BOXES[number], labels, strict=True)
    )
    prompt = SegmentPrompt(text=official.TEXTS[number] or "", boxes=boxes)  # type: ignore[arg-type]
    return segment(
        image=image_of(kept[f"picture{number}"]),
        prompts=(prompt,),
        threshold=official.THRESHOLD,
        mask_threshold=official.MASK_THRESHOLD,
    )


def upstream(kept: dict[str, NDArray[Any]], number: int) -> tuple[Any, ...]:
    """scores, boxes and masks, the best score first."""
    scores, boxes, masks = (kept[f"whole{number}_{what}"] for what in ("scores", "boxes", "masks"))
    order = np.argsort(-scores, kind="stable")
    return scores[order], boxes[order], masks[order]


@pytest.mark.parametrize("number", range(2))
def test_what_boxes_find_is_what_upstream_finds(
    pipeline: Sam3, kept: dict[str, NDArray[Any]], number: int
) -> None:
    """Processor, model and post-processing of transformers, on pictures of two sizes in one batch."""
    scores, boxes, masks = upstream(kept, number)
    (instances,) = run(pipeline, [boxed(kept, number, official.LABELS[number])])[0].prompts
    assert len(instances) == len(scores) > 3
    sizes = [*official.SIZES[number]] * 2
    for i, one in enumerate(instances):
        assert abs(one.score - scores[i]) < UPSTREAM
        assert np.abs((np.array(one.box) - np.clip(boxes[i], 0, sizes)) / sizes).max() < UPSTREAM
        assert np.mean(looks.mask_of(one.mask) != masks[i]) < 1e-3


def test_a_box_of_something_else_is_not_one_of_the_thing(
    pipeline: Sam3, kept: dict[str, NDArray[Any]]
) -> None:
    """The comparison above must be able to fail: labels reach the model."""
    right, wrong = (boxed(kept, 1, labels) for labels in (official.LABELS[1], [0, 1]))
    assert gap(run(pipeline, [right])[0], run(pipeline, [wrong])[0]) > 100 * UPSTREAM


def test_words_alone_go_through_the_stock_model(pipeline: Sam3, options: ModelOptions) -> None:
    """One picture and one prompt at a time through ``Sam3Model``, against two pictures of two in a batch."""
    stock = Sam3Model.from_pretrained(pipeline._loader.folder).eval()
    requests = [segment("a cat", "tree", picture=i, threshold=0.0) for i in range(2)]
    states = pipeline.prepare(requests)
    pipeline.step(states)
    for request, state in zip(requests, states, strict=True):
        assert state.raw is not None
        for number, text in enumerate(("a cat", "tree")):
            words = pipeline._tokenizer([text], padding="max_length", max_length=32, return_tensors="pt")
            with torch.no_grad():
                out = stock(
                    pixel_values=preprocess(request.images[0], request.canvas)[None],
                    input_ids=words.input_ids,
                    attention_mask=words.attention_mask,
                )
            ours = state.raw.candidates
            mine = ours.prompts == number
            scores = (out.pred_logits.sigmoid() * out.presence_logits.sigmoid())[0]
            order = scores.argsort(descending=True, stable=True)
            assert float((ours.scores[mine] - scores[order]).abs().max()) < FLOATS
            assert float((ours.boxes[mine] - out.pred_boxes[0][order]).abs().max()) < FLOATS
            scale = float(out.pred_masks.abs().max())
            assert float((ours.masks[mine] - out.pred_masks[0][order]).abs().max()) < FLOATS * scale


def test_pictures_times_prompts_are_what_each_is_alone(pipeline: Sam3) -> None:
    """More passes than go together, so that some share a pass with another picture and some do not."""
    requests = [segment(*looks.LABELS[: i % 3 + 2], picture=i, id=str(i)) for i in range(5)]
    together = run(pipeline, requests)
    for request, found in zip(requests, together, strict=True):
        assert isinstance(request.ask, Segment)
        for number, prompt in enumerate(request.ask.prompts):
            (alone,) = run(pipeline, [segment(prompt.text, image=request.images[0])])
            one = Segmentation(size=found.size, prompts=found.prompts[number : number + 1])
            assert gap(one, alone) < FLOATS
            assert pixels_apart(one, alone) < 1e-3
    first = [replace(found, prompts=found.prompts[:1]) for found in together]
    assert all(gap(first[0], other) > 100 * FLOATS for other in first[1:])


def test_a_prompt_without_boxes_is_read_without_any(pipeline: Sam3) -> None:
    """Beside one with boxes; in upstream's batch it has an empty list, which changes what it finds."""
    box = SegmentPrompt(text="tree", boxes=(((8.0, 8.0, 50.0, 40.0), True),))
    (mixed,) = run(pipeline, [segment(prompts=(SegmentPrompt(text="a cat"), box))])
    alone, boxed = run(pipeline, [segment("a cat")]) + run(pipeline, [segment(prompts=(box,))])
    assert gap(replace(mixed, prompts=mixed.prompts[:1]), alone) < FLOATS
    assert gap(replace(mixed, prompts=mixed.prompts[1:]), boxed) < FLOATS
    assert gap(boxed, run(pipeline, [segment("tree")])[0]) > 100 * FLOATS


def test_boxes_and_words_have_keys_of_their_own() -> None:
    """A request with boxes would hold up a batch of those without."""
    box = SegmentPrompt(boxes=(((8.0, 8.0, 50.0, 40.0), True),))
    assert BatchKey.of(segment("tree")) == BatchKey.of(segment("cat", picture=1))
    assert BatchKey.of(segment("tree")) != BatchKey.of(segment(prompts=(box,)))


def test_a_picture_is_encoded_once_for_all_who_show_it(pipeline: Sam3) -> None:
    """Of a whole batch; so is a text. What each caller gets is what it would get alone."""
    requests = [
        segment("tree", "cat", picture=1),
        segment("dog", "tree", picture=1),
        segment("tree", picture=2),
        segment("red car", "cat", "dog", picture=1),
    ]
    with pictures_encoded(pipeline) as calls:
        together = run(pipeline, requests)
    assert calls == [2, -4]
    for request, found in zip(requests, together, strict=True):
        assert gap(found, run(pipeline, [request])[0]) < FLOATS


def test_the_cache_spares_both_encoders_and_changes_nothing(remembering: Sam3) -> None:
    """The same picture in a later request, whatever is asked of it."""
    with pictures_encoded(remembering) as calls:
        first = run(remembering, [segment("tree", picture=1), segment("tree", picture=2)])
        again = run(remembering, [segment("tree", picture=2), segment("tree", picture=1)])
        run(remembering, [segment("cat", picture=1)])
    assert calls == [2, -1, -1]
    assert gap(first[0], again[1]) < FLOATS
    assert gap(first[1], again[0]) < FLOATS
    assert gap(first[0], first[1]) > 100 * FLOATS
    pictures, prompts = remembering.caches["pictures"], remembering.caches["prompts"]
    assert (pictures["hits"], pictures["misses"], pictures["entries"]) == (3, 2, 2)
    assert (prompts["hits"], prompts["misses"], prompts["entries"]) == (1, 2, 2)


def test_the_cache_is_bounded(options: ModelOptions) -> None:
    """By bytes: the least recently seen picture leaves."""
    one = 8 * 8 * 32 * 4  # patches, width, bytes
    pipeline = load(SPEC, replace(options, condition_cache_bytes=2 * one + 2**13), Silent())
    for picture in (1, 2, 3):
        run(pipeline, [segment("tree", picture=picture)])
    with pictures_encoded(pipeline) as calls:
        run(pipeline, [segment("tree", picture=3)])
        run(pipeline, [segment("tree", picture=1)])
    assert pipeline.caches["pictures"]["bytes"] == 2 * one
    assert calls == [1]


def test_a_poisoned_picture_is_neither_shared_nor_remembered(remembering: Sam3) -> None:
    """Its request fails; one of the same picture beside it is answered, and so is the next."""
    request = segment("tree")
    (want,) = run(remembering, [segment("tree", image=replace(request.images[0], digest="another name"))])
    states = remembering.prepare([request, request])
    looks.spoil_pictures(states[0])
    remembering.step(states)
    with pytest.raises(ExecutionError):
        remembering.decode(states[:1])
    assert gap(found_in(remembering.decode(states[1:])[0]), want) < FLOATS
    assert gap(run(remembering, [request])[0], want) < FLOATS
    lone = remembering.prepare([segment("tree", picture=3)])
    looks.spoil_pictures(lone[0])
    remembering.step(lone)
    assert run(remembering, [segment("tree", picture=3)])[0].prompts[0]


def test_a_long_prompt_is_refused_with_its_limit(pipeline: Sam3) -> None:
    """The text encoder has places for 32 tokens; upstream's own processor fails inside the model."""
    words = "cat " * 30
    assert run(pipeline, [segment(words.strip())])[0].prompts
    with pytest.raises(RequestError, match="33 tokens is over the limit of 32") as refused:
        pipeline.prepare([segment(words + "cat")])
    assert (refused.value.code, refused.value.param) == ("invalid_parameter", "prompts")


def test_only_the_best_are_held_on_to(pipeline: Sam3, options: ModelOptions) -> None:
    """Over all prompts of a picture, while they are computed: their masks would fill a device."""
    vision = SPEC.vision
    assert vision is not None
    few = load(replace(SPEC, vision=replace(vision, max_found=5)), options, Silent())
    request = segment(*looks.LABELS, "cat", "dog", "house", "sky", "river", "lamp")
    (all_of_them,), (best,) = run(pipeline, [request]), run(few, [request])
    scores = sorted((one.score for found in all_of_them.prompts for one in found), reverse=True)
    kept = sorted((one.score for found in best.prompts for one in found), reverse=True)
    assert len(scores) > 20
    assert kept == pytest.approx(scores[:5], abs=FLOATS)


def test_large_pictures_are_told_fewer_masks(pipeline: Sam3, options: ModelOptions) -> None:
    """Each is drawn at the picture's size while nobody else has the device; one at least always is."""
    vision = SPEC.vision
    assert vision is not None
    request = segment(*looks.LABELS)
    (whole,) = run(pipeline, [request])
    scores = sorted((one.score for found in whole.prompts for one in found), reverse=True)
    assert len(scores) > 3
    for pixels, count in ((3 * 96 * 72 + 1, 3), (1, 1)):
        few = load(replace(SPEC, vision=replace(vision, max_mask_pixels=pixels)), options, Silent())
        (told,) = run(few, [request])
        kept = sorted((one.score for found in told.prompts for one in found), reverse=True)
        assert kept == pytest.approx(scores[:count], abs=FLOATS)
