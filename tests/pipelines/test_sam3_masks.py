"""SAM 3's numbers as instances: scores, boxes, masks as run lengths, shared pixels, and memory."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.vision import Mask, Segment, Segmentation, SegmentPrompt
from pipelines.sam3_masks import Candidates, joined, over_threshold, run_lengths, segmentation
from tests.pipelines import looks
from tests.pipelines.fixtures import make_sam3 as official

SIZE = (8, 6)


@pytest.fixture(scope="module")
def kept() -> dict[str, NDArray[Any]]:
    with np.load(official.FILE) as file:
        return dict(file)


def asking(prompts: int, **ask: Any) -> Segment:
    return Segment(prompts=(SegmentPrompt(text="tree"),) * prompts, **ask)


def candidates(*found: tuple[int, float, tuple[int, int]]) -> Candidates:
    """(prompt, score, columns from and to) of masks that fill columns of a picture of ``SIZE``, as given."""
    masks = torch.full((len(found), SIZE[1], SIZE[0]), -9.0)
    for mask, (_, _, (start, end)) in zip(masks, found, strict=True):
        mask[:, start:end] = 9.0
    boxes = torch.tensor([[start / SIZE[0], 0.0, end / SIZE[0], 1.0] for _, _, (start, end) in found])
    return Candidates(
        torch.tensor([prompt for prompt, _, _ in found]),
        torch.tensor([score for _, score, _ in found]),
        boxes.view(-1, 4),
        masks,
    )


def columns(found: Segmentation) -> list[list[list[int]]]:
    """Columns that each instance's mask fills, by prompt."""
    return [[np.flatnonzero(looks.mask_of(i.mask)[0]).tolist() for i in of_one] for of_one in found.prompts]


@pytest.mark.parametrize("number", range(2))
def test_instances_are_those_of_upstream(kept: dict[str, NDArray[Any]], number: int) -> None:
    """Scores, boxes and every pixel, at thresholds that are not the defaults."""
    raw = {name: torch.from_numpy(kept[f"raw_{name}"][number]) for name in ("logits", "boxes", "masks")}
    presence = torch.from_numpy(kept["raw_presence"][number])
    ask = asking(1, threshold=official.THRESHOLD, mask_threshold=official.MASK_THRESHOLD)
    scores = raw["logits"].sigmoid() * presence.sigmoid()
    found = over_threshold(0, scores, raw["boxes"], raw["masks"], threshold=ask.threshold, limit=100)
    (instances,) = segmentation(found, ask, official.SIZES[number]).prompts
    order = np.argsort(-kept[f"post{number}_scores"], kind="stable")
    assert len(instances) == len(order) > 3
    for one, i in zip(instances, order, strict=True):
        assert one.score == pytest.approx(kept[f"post{number}_scores"][i], abs=1e-6)
        assert one.box == pytest.approx(kept[f"post{number}_boxes"][i], abs=1e-4)
        assert np.array_equal(looks.mask_of(one.mask), kept[f"post{number}_masks"][i])
    at_half = segmentation(found, asking(1), official.SIZES[number]).prompts[0]
    assert [one.mask for one in at_half] != [one.mask for one in instances]


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 0], [0, 0]], [4]),
        ([[1, 1], [1, 1]], [0, 4]),
        ([[1, 0], [0, 0]], [0, 1, 3]),
        ([[0, 1], [0, 0]], [2, 1, 1]),
        ([[0, 0], [1, 1]], [1, 1, 1, 1]),
        ([[1]], [0, 1]),
    ],
    ids=str,
)
def test_runs_go_down_the_columns_and_begin_with_zeros(mask: list[list[int]], runs: list[int]) -> None:
    """As COCO's do, so that every format can be made of them."""
    found = run_lengths(torch.tensor(mask, dtype=torch.bool))
    assert np.frombuffer(found, "<u4").tolist() == runs


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_runs_hold_the_whole_mask(density: float) -> None:
    """Any mask comes back from its runs, pixel by pixel."""
    mask = np.random.default_rng(0).random((37, 53)) < density
    runs = run_lengths(torch.from_numpy(mask))
    assert np.array_equal(looks.mask_of(Mask(size=(53, 37), runs=runs)), mask)


def test_a_score_at_the_threshold_is_not_above_it() -> None:
    """As upstream has it; and the best come first, within the limit."""
    scores, boxes, masks = torch.tensor([0.5, 0.9, 0.51, 0.7]), torch.zeros(4, 4), torch.zeros(4, 2, 2)
    found = over_threshold(3, scores, boxes, masks, threshold=0.5, limit=10)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.51])
    assert found.prompts.tolist() == [3, 3, 3]
    assert len(over_threshold(3, scores, boxes, masks, threshold=0.5, limit=2).scores) == 2
    assert len(over_threshold(3, scores * float("nan"), boxes, masks, threshold=0.0, limit=9).scores) == 0


def test_the_best_of_two_prompts_keep_their_own_prompt() -> None:
    """Told under the prompt that found them, the best first; between equals the earlier prompt's."""
    one, other = (
        candidates((0, 0.8, (0, 2)), (0, 0.6, (2, 4))),
        candidates((1, 0.9, (4, 6)), (1, 0.6, (6, 8))),
    )
    found = joined(one, other, 3)
    assert found.prompts.tolist() == [1, 0, 0]
    assert columns(segmentation(found, asking(2), SIZE)) == [[[0, 1], [2, 3]], [[4, 5]]]


def test_a_box_is_told_inside_the_picture() -> None:
    """Boxes of the model may reach over its edges."""
    found = candidates((0, 0.8, (0, 8)))
    found.boxes[0] = torch.tensor([-0.2, 0.5, 1.1, 1.5])
    assert segmentation(found, asking(1), SIZE).prompts[0][0].box == (0.0, 3.0, 8.0, 6.0)


@pytest.mark.parametrize(
    ("priors", "expected"),
    [
        (None, [[[0, 1, 2, 3, 4]], [[3, 4, 5, 6]]]),
        ((1.0, 1.0), [[[0, 1, 2, 3, 4]], [[5, 6]]]),
        ((1.0, 2.0), [[[0, 1, 2]], [[3, 4, 5, 6]]]),
        ((1.0, 1.3), [[[0, 1, 2, 3, 4]], [[5, 6]]]),
    ],
    ids=str,
)
def test_a_pixel_that_several_claim_goes_to_the_largest_weight_times_score(
    priors: tuple[float, float] | None, expected: list[list[list[int]]]
) -> None:
    """None leaves masks as they are."""
    found = candidates((0, 0.8, (0, 5)), (1, 0.6, (3, 7)))
    assert columns(segmentation(found, asking(2, priors=priors), SIZE)) == expected


def test_shared_out_masks_never_overlap_and_lose_no_pixel() -> None:
    """Also between instances of one prompt; the order of the answer stays that of the scores."""
    spans = [(0, 0.9, (0, 4)), (1, 0.8, (2, 6)), (0, 0.7, (1, 3)), (1, 0.6, (5, 8))]
    free, shared = (
        segmentation(candidates(*spans), asking(2, priors=priors), SIZE) for priors in (None, (0.5, 1.0))
    )
    cover = [np.sum([looks.mask_of(i.mask) for of in s.prompts for i in of], axis=0) for s in (free, shared)]
    assert cover[0].max() == 3
    assert cover[1].max() == 1
    assert np.array_equal(cover[0] > 0, cover[1] > 0)
    assert [one.score for one in shared.prompts[0]] == pytest.approx([0.9, 0.7])


_MEASURE = """
import pathlib, re, sys, torch
from core.vision import Segment, SegmentPrompt
from pipelines.sam3_masks import Candidates, full_size, segmentation
torch.set_num_threads(1)
torch.manual_seed(0)
def most():  # resident at any time; getrusage would count the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
coarse = torch.nn.functional.interpolate(torch.randn(60, 1, 18, 18), (288, 288), mode="bicubic")[:, 0]
scores = torch.linspace(0.9, 0.5, 60)
found = Candidates(torch.zeros(60, dtype=torch.int64), scores, torch.rand(60, 4), coarse)
ask = Segment(prompts=(SegmentPrompt(text="tree"),), priors=(1.0,))
size = (4000, 3000)
full_size(coarse[0], (64, 64), 0.5)
before = most()
if sys.argv[1] == "held":
    held = [full_size(mask, size, 0.5) for mask in coarse[:30]]
else:
    assert len(segmentation(found, ask, size).prompts[0]) == 60
print(most() - before)
"""


def _megabytes(way: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, way], capture_output=True, text=True, timeout=120, check=True
    )
    return float(done.stdout)


def test_sixty_instances_on_twelve_megapixels_stay_within_200_megabytes() -> None:
    """Shared out between them, which takes the most. Half as many that are held together would not fit, and
    upstream's way takes 9 GB.
    """
    assert _megabytes("one at a time") < 200
    assert _megabytes("held") > 300
