"""Grounding DINO: upstream's answers, whoever else is in the batch, in the caller's pixels and words."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor
from transformers.models.mm_grounding_dino.configuration_mm_grounding_dino import MMGroundingDinoConfig
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import MMGroundingDinoForObjectDetection
from transformers.models.swin.configuration_swin import SwinConfig

from core.catalog import Catalog
from core.errors import CapacityError, RequestError
from core.pipeline import BatchKey
from core.request import Image, InferenceRequest
from core.spec import PipelineSpec
from core.vision import Detect, Detections
from core.vision_spec import VisionSpec
from pipelines.grounding_dino import Found, GroundingDINO, preprocess
from pipelines.grounding_text import write_caption
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.pocket import grounding_dino as pocket
from pipelines.pocket.drawing import redraw
from pipelines.registry import catalog
from tests.pipelines import edits
from tests.pipelines.looks import look

POCKET = catalog("pocket-grounding-dino").default
TOLERANCE = 1e-5  # of scores, and of boxes relative to the picture
THRESHOLDS: dict[str, Any] = {"box_threshold": 0.2, "text_threshold": 0.15}
LABELS = ("A cat ", "Red Car", "lamp by the road")


def acquire(spec: PipelineSpec, options: ModelOptions) -> GroundingDINO:
    pipeline = ModelManager(Catalog([spec], spec.name), options).acquire(spec.name)
    assert isinstance(pipeline, GroundingDINO)
    return pipeline


@pytest.fixture(scope="module")
def detector(options: ModelOptions) -> GroundingDINO:
    return acquire(POCKET, options)


@pytest.fixture(scope="module")
def folder(options: ModelOptions) -> Path:
    return pocket.build(options.cache_dir)


@pytest.fixture(scope="module")
def mm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MM Grounding DINO at the same size: a bias in each comparison, no parameters shared by layers."""
    to = tmp_path_factory.mktemp("mm")
    tokenizer = pocket.build_tokenizer()
    config = MMGroundingDinoConfig(
        backbone_config=SwinConfig(**pocket.SWIN),
        text_config=BertConfig(vocab_size=len(tokenizer), **pocket.BERT),
        **pocket.DETECTOR | {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False},
    )
    model = MMGroundingDinoForObjectDetection(config)
    redraw(model, torch.float32, pocket.GAINS | {"decoder.layer_norm.weight": 1.5})
    with torch.no_grad():
        for embed in model.class_embed:
            embed.bias.fill_(-2.0)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


@pytest.fixture(scope="module")
def mm_detector(mm_folder: Path, options: ModelOptions) -> GroundingDINO:
    row = replace(catalog("mm-grounding-dino-tiny").default, vision=POCKET.vision)
    return acquire(row, replace(options, model_dir=mm_folder))


def official(folder: Path, pictures: list[Image], labels: list[tuple[str, ...]]) -> tuple[Any, Any, Any]:
    """The library's own processor, model and inputs for a batch."""
    images = GroundingDinoImageProcessorPil(size=pocket.SIZE)
    processor = GroundingDinoProcessor(images, BertTokenizer.from_pretrained(folder))
    mm = "mm-" in (folder / "config.json").read_text()
    kind = MMGroundingDinoForObjectDetection if mm else GroundingDinoForObjectDetection
    inputs = processor(
        images=[pil(picture) for picture in pictures],
        text=[list(row) for row in labels],
        return_tensors="pt",
        padding=True,
    )
    return processor, kind.from_pretrained(folder).eval(), inputs


def pil(picture: Image) -> PIL.Image.Image:
    return PIL.Image.frombytes("RGB", picture.size, picture.pixels)


def found_by(detector: GroundingDINO, requests: list[InferenceRequest]) -> list[Found]:
    states = detector.prepare(requests)
    detector.step(states)
    return [state.raw for state in states if state.raw is not None]


def answer(detector: GroundingDINO, request: InferenceRequest) -> Detections:
    output = edits.edit(detector, request).output
    assert isinstance(output, Detections)
    return output


def apart(one: Found, other: Found) -> float:
    scores = (one.logits.sigmoid() - other.logits.sigmoid()).abs().max()
    return max(float(scores), float((one.boxes - other.boxes).abs().max()))


SIZES = [(96, 72), (72, 96), (128, 128), (128, 200), (301, 33), (1000, 40), (640, 480)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_enter_as_upstream_prepares_them(size: tuple[int, int]) -> None:
    """To the last bit; another filter would be seen."""
    picture = edits.picture(3, *size)
    theirs = GroundingDinoImageProcessorPil(size=pocket.SIZE)(pil(picture), return_tensors="pt")
    assert POCKET.vision is not None
    entry = POCKET.vision.entry(size)
    assert torch.equal(preprocess(picture, entry), theirs["pixel_values"][0])
    bicubic = pil(picture).resize(entry, PIL.Image.Resampling.BICUBIC)
    other = replace(picture, pixels=bicubic.tobytes(), width=entry[0], height=entry[1])
    assert entry == size or not torch.allclose(preprocess(other, entry), theirs["pixel_values"][0], atol=1e-2)


def test_the_size_of_entry_is_upstreams_for_any_picture() -> None:
    """A size that is off by one changes every box a little. Where upstream comes to a side of no pixel at
    all, and fails, it is one."""
    draw = np.random.default_rng(7)
    checked = impossible = 0
    for side, longest in ((800, 1333), (128, 213)):
        spec = VisionSpec(fit="shortest", side=side, longest=longest)
        for width, height in [
            *draw.integers(1, 4000, (1500, 2)).tolist(),
            *draw.integers(1, 40, (200, 2)).tolist(),
            *([side, other] for other in range(1, 3000, 17)),
            *([other, other] for other in range(1, 3000, 97)),
            *([other, 2] for other in range(1, 4000, 37)),
        ]:
            theirs = get_size_with_aspect_ratio((height, width), side, longest)[::-1]
            assert spec.entry((width, height)) == tuple(max(1, edge) for edge in theirs)
            checked, impossible = checked + 1, impossible + (0 in theirs)
    assert checked > 3000
    assert impossible > 10


@pytest.mark.parametrize("size", [(2000, 1), (1, 700), (1, 1), (9, 2)], ids=str)
def test_a_thin_picture_is_looked_at(detector: GroundingDINO, size: tuple[int, int]) -> None:
    """It is a picture like any other, and fails nobody."""
    request = look(POCKET.name, width=size[0], height=size[1], labels=LABELS, box_threshold=0.0)
    for item in answer(detector, request).items:
        left, top, right, bottom = item.box
        assert 0 <= left <= right <= size[0]
        assert 0 <= top <= bottom <= size[1]


@pytest.mark.parametrize("variant", ["detector", "mm_detector"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_answers_are_upstreams(variant: str, number: int, request: pytest.FixtureRequest) -> None:
    """Same boxes, scores and phrases as the library's processor and model give for the same labels."""
    ours: GroundingDINO = request.getfixturevalue(variant)
    where: Path = request.getfixturevalue("folder" if variant == "detector" else "mm_folder")
    asked = look(POCKET.name, number, width=110, height=72, labels=LABELS, **THRESHOLDS)
    processor, model, inputs = official(where, [asked.images[0]], [LABELS])
    with torch.inference_mode():
        outputs = model(**inputs)
    theirs = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], 0.2, 0.15, target_sizes=[(72, 110)]
    )[0]
    order = theirs["scores"].argsort(descending=True, stable=True)
    boxes = theirs["boxes"][order].clamp(min=0).minimum(torch.tensor([110, 72, 110, 72]))
    items = answer(ours, asked).items
    assert 2 <= len(items) < pocket.DETECTOR["num_queries"]
    assert_near([item.score for item in items], theirs["scores"][order])
    assert_near([item.box for item in items], boxes, 110 * TOLERANCE)
    assert [item.phrase for item in items] == [theirs["text_labels"][i] for i in order]
    assert len({item.phrase for item in items}) > 1
    others = answer(ours, look(POCKET.name, number + 1, width=110, height=72, labels=LABELS, **THRESHOLDS))
    assert others.items[0].box != pytest.approx(items[0].box, abs=1)


def assert_near(ours: Any, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(torch.tensor(ours), theirs, atol=tolerance, rtol=0)


CAPTIONS = [("tree",), LABELS, ("a bottle", "phone", "person with a book", "u.s. flag"), ("cat", "dog")]


def captioned(name: str = POCKET.name) -> list[InferenceRequest]:
    return [look(name, i, labels=labels, **THRESHOLDS) for i, labels in enumerate(CAPTIONS)]


@pytest.mark.parametrize("variant", ["detector", "mm_detector"])
def test_captions_of_any_length_share_a_forward(variant: str, request: pytest.FixtureRequest) -> None:
    """Padding of the shorter ones is seen by nobody: what each row finds is what it finds alone."""
    detector: GroundingDINO = request.getfixturevalue(variant)
    requests = captioned()
    together = found_by(detector, requests)
    assert len({one.logits.shape for one in together}) == len(CAPTIONS)
    for asked, one in zip(requests, together, strict=True):
        (alone,) = found_by(detector, [asked])
        assert apart(one, alone) <= TOLERANCE
    again = found_by(detector, [requests[i] for i in (2, 0)])
    assert apart(again[1], together[0]) <= TOLERANCE


def test_coarser_products_would_part_a_batch_from_its_rows(detector: GroundingDINO) -> None:
    """Why the family computes in fp32 wherever it runs: candidates are ranked, and ranks change places."""
    assert "fp32 weights and products" in detector.precision
    requests = captioned()
    inputs = [state.inputs for state in detector.prepare(requests)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        together = detector.forward(requests, inputs)
        alone = [detector.forward([one], [own])[0] for one, own in zip(requests, inputs, strict=True)]
    assert max(map(apart, together, alone)) > 1000 * TOLERANCE


@pytest.mark.parametrize("breach", ["no mask", "no full stop"])
def test_padding_is_seen_where_the_rules_are_broken(folder: Path, breach: str) -> None:
    """What the comparison above could find: without a mask, or a full stop at the end, answers move."""
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    pixels = preprocess(edits.picture(0), (170, 128))[None]
    ids = torch.tensor([write_caption(pocket.build_tokenizer(), ("a cat", "red car"), 256).ids])
    if breach == "no full stop":
        ids = torch.cat([ids[:, :-2], ids[:, -1:]], 1)
    padded = torch.cat([ids, torch.zeros((1, 9), dtype=torch.long)], 1)
    mask = torch.ones_like(padded)
    if breach == "no full stop":
        mask[:, ids.shape[1] :] = 0
    with torch.inference_mode():
        alone, beside = (
            model(pixel_values=pixels, input_ids=ids),
            model(pixel_values=pixels, input_ids=padded, attention_mask=mask),
        )
    moved = (alone.logits[..., : ids.shape[1]] - beside.logits[..., : ids.shape[1]]).abs().max()
    assert moved > 100 * TOLERANCE


def test_pictures_of_other_sizes_are_never_padded_together(folder: Path) -> None:
    """Upstream pads them to one size, and its answers move; here they have keys of their own, while
    pictures of other sizes that enter alike share one."""
    wide, tall = look(POCKET.name, 0, width=96, height=72), look(POCKET.name, 1, width=72, height=96)
    assert BatchKey.of(wide) != BatchKey.of(tall)
    assert BatchKey.of(wide) == BatchKey.of(look(POCKET.name, 2, width=192, height=144))
    _, model, both = official(folder, [wide.images[0], tall.images[0]], [("cat",), ("cat",)])
    _, _, one = official(folder, [wide.images[0]], [("cat",)])
    with torch.inference_mode():
        padded, alone = model(**both).pred_boxes[0], model(**one).pred_boxes[0]
    true_sides = torch.tensor([170, 128, 170, 128]) / 170  # a padded box is told in parts of 170 x 170
    assert (padded / true_sides - alone).abs().max() > 100 * TOLERANCE


def test_a_row_that_is_not_finite_leaves_its_neighbours_as_they_are(
    detector: GroundingDINO, folder: Path
) -> None:
    """Upstream's model spreads it over the batch; here the rows are run again apart."""
    requests = [captioned()[i] for i in (0, 1, 3)]
    states = detector.prepare(requests)
    states[1].inputs.pixels = states[1].inputs.pixels * float("nan")
    detector.step(states)
    for i in (0, 2):
        raw = states[i].raw
        assert raw is not None
        assert apart(raw, found_by(detector, [requests[i]])[0]) <= TOLERANCE
    _, model, inputs = official(folder, [r.images[0] for r in requests], [r.ask.labels for r in requests])  # type: ignore[union-attr]
    inputs["pixel_values"][1] = float("nan")
    with torch.inference_mode():
        assert model(**inputs).pred_boxes[0].isnan().all()


def tell(detector: GroundingDINO, logits: Callable[[dict[str, list[int]]], Tensor], **ask: Any) -> Detections:
    """What is made of given logits for the labels "red car", "Blue Car" and "tree"."""
    asked = look(POCKET.name, width=200, height=100, labels=("red car", "Blue Car", "tree"), **ask)
    assert isinstance(asked.ask, Detect)
    caption = write_caption(pocket.build_tokenizer(), asked.ask.labels, 256)
    names = {"ids": list(caption.ids)} | {
        label: list(places) for label, places in zip(asked.ask.labels, caption.places, strict=True)
    }
    rows = logits(names)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(len(rows), 1)
    if len(rows) > 1:
        boxes[1] = torch.tensor([0.05, 0.95, 0.3, 0.4])  # reaches out of the picture to the lower left
    return detector.tell(asked, Found(caption, rows, boxes))


def test_a_box_has_the_label_of_its_best_word(detector: GroundingDINO) -> None:
    """The word car stands in two labels: which of them is meant is told by the place, not by the word."""

    def logits(places: dict[str, list[int]]) -> Tensor:
        rows = torch.full((3, len(places["ids"])), -6.0)
        rows[0, places["red car"][1]], rows[0, places["Blue Car"][1]] = 1.0, 2.0
        rows[1, places["red car"][1]], rows[1, places["Blue Car"][0]] = 1.5, 0.2
        rows[2, places["tree"][0]] = 1.0
        return rows

    items = tell(detector, logits, text_threshold=0.75).items
    assert [(item.label, item.phrase) for item in items] == [(1, "car"), (0, "car"), (2, "")]
    assert [item.score for item in items] == pytest.approx([0.8808, 0.8176, 0.7311], abs=1e-4)


def test_the_score_is_upstreams_even_of_a_separator(detector: GroundingDINO) -> None:
    """The best of all tokens decides whether there is a box; its label is still one of the caller's."""

    def logits(places: dict[str, list[int]]) -> Tensor:
        rows = torch.full((1, len(places["ids"])), -6.0)
        rows[0, places["ids"].index(1012)] = 2.0
        rows[0, places["tree"][0]] = -1.0
        return rows

    (item,) = tell(detector, logits, text_threshold=0.3).items
    assert (item.label, item.phrase, round(item.score, 4)) == (2, ".", 0.8808)


def test_boxes_are_pixels_inside_the_picture_best_first(detector: GroundingDINO) -> None:
    """Clients draw them and cut them out."""

    def logits(places: dict[str, list[int]]) -> Tensor:
        return torch.tensor([[0.5], [1.5]]).expand(2, len(places["ids"])).clone()

    found = tell(detector, logits)
    assert found.size == (200, 100)
    assert [item.box for item in found.items] == [
        pytest.approx((0, 75, 40, 100), abs=1e-3),
        pytest.approx((80, 30, 120, 70), abs=1e-3),
    ]


def test_nothing_found_is_an_answer(detector: GroundingDINO) -> None:
    """Not an error, and not one box with an empty label."""
    assert answer(detector, look(POCKET.name, labels=("cat",), box_threshold=1.0)).items == ()
    assert answer(detector, look(POCKET.name, labels=("cat",), box_threshold=0.0)).items != ()


def test_the_best_are_told_when_there_are_more_than_the_limit(options: ModelOptions) -> None:
    """The limit of the row, whatever the threshold."""
    assert POCKET.vision is not None
    few = acquire(replace(POCKET, vision=replace(POCKET.vision, max_found=3)), options)
    asked = look(POCKET.name, labels=LABELS, box_threshold=0.0)
    all_scores = found_by(few, [asked])[0].logits.sigmoid().amax(-1).sort(descending=True).values
    assert_near([item.score for item in answer(few, asked).items], all_scores[:3])


def test_too_long_a_caption_is_refused_before_it_is_run(detector: GroundingDINO) -> None:
    """Only the tokenizer can tell; the caller hears the limit and what to do."""
    with pytest.raises(RequestError, match="over the limit of 256"):
        detector.prepare([look(POCKET.name, labels=("zq " * 140,))])


def test_labels_are_found_again_in_the_callers_own_order(detector: GroundingDINO) -> None:
    """An index into the list as it was sent: spelling, case and blanks stay the caller's."""
    shouted = answer(detector, look(POCKET.name, 1, labels=(" TREE", "A Cat", "LAMP"), box_threshold=0.05))
    plain = answer(detector, look(POCKET.name, 1, labels=("tree", "a cat", "lamp"), box_threshold=0.05))
    assert shouted == plain
    assert len({item.label for item in plain.items}) > 1


def test_a_checkpoint_that_lacks_what_its_backbone_never_uses_loads(
    folder: Path, tmp_path: Path, options: ModelOptions
) -> None:
    """The published files have no last normalisation of the Swin transformer; any other lack is refused."""
    other = tmp_path / "published"
    shutil.copytree(folder, other)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "swin.layernorm" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
    acquire(POCKET, replace(options, model_dir=other))
    del kept["model.level_embed"]
    save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CapacityError, match="lacks 1 of the weights"):
        acquire(POCKET, replace(options, model_dir=other))


def test_the_pocket_checkpoint_is_small_and_always_the_same(folder: Path, tmp_path: Path) -> None:
    """It is written on first use, on any laptop, and two workers must answer alike."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sum(map(len, files.values())) < 2_000_000
    again = pocket.build(tmp_path)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == files


def test_a_common_list_of_classes_fits(detector: GroundingDINO) -> None:
    """Some eighty labels, as data sets of detection have them, and as many as the caption has room for."""
    many = tuple(f"{colour} {thing}" for colour in ("red", "blue") for thing in ("cat", "dog", "car") * 13)
    assert len(many) == 78
    assert answer(detector, look(POCKET.name, labels=many, box_threshold=0.05)).items
    found_by(detector, [look(POCKET.name, labels=("cat",) * 127)])
    with pytest.raises(RequestError, match="128 labels are over the limit of 127; send fewer"):
        look(POCKET.name, labels=("cat",) * 128)
