"""The key by which rows share a forward."""

from core.pipeline import BatchKey
from tests.core.test_spec import MASK, RICH, ask, generate


def test_steps_and_cfg_divide_batches_only_when_rows_start_together() -> None:
    """Step-level joining exists so that they need not."""
    short, long = ask(steps=4, cfg=3.0), ask(steps=8, cfg=5.0)
    assert BatchKey.of(short) == BatchKey.of(long)
    assert BatchKey.of(short, together=True) != BatchKey.of(long, together=True)


def test_an_edit_that_begins_at_its_picture_joins_those_that_begin_at_noise() -> None:
    """One forward of the same shape serves both, with a mask or without."""
    from_text = generate(width=512, height=512)
    from_picture = ask(RICH, width=512, height=512)
    masked = ask(RICH, width=512, height=512, mask=MASK)
    assert BatchKey.of(from_text) == BatchKey.of(from_picture) == BatchKey.of(masked)
    assert BatchKey.of(from_text) != BatchKey.of(generate(width=512, height=528))


def test_rows_that_start_together_run_equally_many_steps() -> None:
    """Half of 20 steps ends with all of 10."""
    half, all_of_ten = ask(RICH, strength=0.5, steps=20), ask(RICH, strength=1.0, steps=10)
    assert BatchKey.of(half, together=True) == BatchKey.of(all_of_ten, together=True)
    assert BatchKey.of(half, together=True) != BatchKey.of(ask(RICH, steps=20), together=True)


def test_loras_divide_batches() -> None:
    """They change the weights of the forward, a scale as much as a name."""
    plain, comic, faint = (
        BatchKey.of(ask(RICH, adapters=loras)) for loras in ([], [("comic", 1.0)], [("comic", 0.5)])
    )
    assert len({plain, comic, faint}) == 3
