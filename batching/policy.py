"""``BatchPolicy``: the scheduler's constants, and why each has its default."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPolicy:
    """How much may wait, how much may run at once, and in which order.

    max_batch_size:   most rows in one step.
    max_wait:         seconds for which the first row may be held back so that others can join it
                      (``join="batch"``, and one-step models while callers are about to return).
    max_queue:        most requests that wait; more are refused.
    max_queue_bytes:  most memory of the requests accepted and not answered yet, those that run included:
                      their pictures are kept to the end. One request is always accepted.
    max_batch_tokens: most transformer tokens in one step; one row always fits.
    max_prepared:     most rows that hold device memory between steps, those sitting out included.
    join:             "step" admits rows between steps; "batch" only when nothing runs, rows of equal
                      steps and cfg together.
    order:            "remaining": least remaining work first, aged; "fifo": in order of arrival.

    The other fields are settled by ``benchmarks/scheduler_sim.py`` and rarely need a change.

    stretch:          a job yields to later ones that are shorter by ``d`` seconds of work until it has
                      waited ``stretch * d``.
    overtaking:       and in any case only until it has waited for the work it found before it plus
                      ``overtaking`` times its own.
    thrift:           seconds by which a key's turn is put off for each second of device time that its
                      first row would waste in too narrow a batch; others run meanwhile, and rows gather.
    patience:         batch times, of the batch in its way, for which a key (or a model) is held up at most.
    min_gain:         a batch is made wider only while that raises its measured throughput by this share:
                      on a saturated device width makes everyone wait and nobody faster.
    limit_seconds:    for how long the batch size that ran out of memory is avoided.
    hang_after:       seconds that a device call may always take; then it is taken for hung when nobody waits
                      for its rows any more, their deadlines being over,
    hang_limit:       and after this many seconds in any case.
    """

    max_batch_size: int = 4
    max_wait: float = 0.040
    max_queue: int = 256
    max_queue_bytes: int = 1 << 30
    max_batch_tokens: int = 65_536
    max_prepared: int = 32
    join: Literal["step", "batch"] = "step"
    order: Literal["remaining", "fifo"] = "remaining"
    stretch: float = 14.0
    overtaking: float = 3.0
    thrift: float = 64.0
    patience: float = 2.0
    min_gain: float = 0.02
    limit_seconds: float = 60.0
    hang_after: float = 60.0
    hang_limit: float = 300.0
