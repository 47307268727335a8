"""What every stage shares: a resumable loop with warm-up, cosine decay, an average of weights and a log."""

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

FOLDER = Path("out/training")
_SAVE_EVERY = 250
_MUON = 1.7  # its rate over AdamW's


class Run:
    """Iterate over it to get the steps still to do; call ``learn`` once in each.

    State lies under ``out/training/NAME``: ``state.pt`` to resume from, ``log.jsonl`` with the curve.
    average: decay of the running average of the weights, which is what is evaluated and kept.
    matrices: weights that Muon moves, at AdamW's scale; AdamW moves the others.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        *,
        steps: int,
        rate: float,
        average: float = 0.998,
        matrices: Iterable[torch.nn.Parameter] = (),
    ) -> None:
        self._folder = FOLDER / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._model = model
        self._steps = steps
        self._rate = rate
        self._average = average
        self._weights = [p for p in model.parameters() if p.requires_grad]
        chosen = list(matrices)
        others = [p for p in self._weights if all(p is not matrix for matrix in chosen)]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.01},
                    {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=rate,
                betas=(0.9, 0.98),
            )
        ]
        if chosen:
            self._optimisers.append(
                torch.optim.Muon(chosen, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            )
        self._mean = [p.detach().clone() for p in self._weights]
        self._step = 0
        self._losses: list[float] = []
        self._started = time.monotonic()
        self._resume()
        self.first = self._step

    @staticmethod
    def weights(name: str) -> dict[str, Tensor]:
        """The averaged weights that run ``name`` kept last, all of the model's."""
        kept: dict[str, Tensor] = torch.load(FOLDER / name / "weights.pt", weights_only=True)
        return kept

    def __iter__(self) -> Iterator[int]:
        bar = tqdm(total=self._steps, initial=self._step, desc=self._folder.name, mininterval=5)
        while self._step < self._steps:
            yield self._step
            self._step += 1
            bar.update()
            if self._step % _SAVE_EVERY == 0 or self._step == self._steps:
                self._save()
        bar.close()

    @property
    def progress(self) -> float:
        return self._step / self._steps

    @property
    def due(self) -> bool:
        """Whether this step ends with a measurement."""
        return (self._step + 1) % _SAVE_EVERY == 0 or self._step + 1 == self._steps

    def learn(self, loss: Tensor) -> None:
        rate = self._rate * min(1.0, (self._step + 1) / 100) * (0.01 + 0.99 * _cosine(self.progress))
        for optimiser in self._optimisers:
            faster = _MUON if isinstance(optimiser, torch.optim.Muon) else 1.0
            for group in optimiser.param_groups:
                group["lr"] = rate * faster
            optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
        decay = min(self._average, (1 + self._step) / (10 + self._step))
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._weights], 1 - decay)
        self._losses.append(float(loss.detach()))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, for as long as the block lasts."""
        own = [p.detach().clone() for p in self._weights]
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(own)

    def note(self, **figures: Any) -> None:
        """One line of the curve: figures beside the mean loss since the last one."""
        loss = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        line = {"step": self._step + 1, "seconds": round(time.monotonic() - self._started), "loss": loss}
        with (self._folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line | figures) + "\n")
        tqdm.write(
            " ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in (line | figures).items()
            )
        )

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)

    def _save(self) -> None:
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "mean": self._mean,
        }
        unfinished = self._folder / "state.tmp"
        torch.save(state, unfinished)
        unfinished.rename(self._folder / "state.pt")
        with self.averaged():
            torch.save(self._model.state_dict(), self._folder / "weights.tmp")
        (self._folder / "weights.tmp").rename(self._folder / "weights.pt")

    def _resume(self) -> None:
        path = self._folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self._model.load_state_dict(state["model"])
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self._mean = state["mean"]
        self._step = state["step"]


def psnr(a: Tensor, b: Tensor) -> float:
    """Decibels, for values that span one unit."""
    return float(-10 * torch.log10((a - b).square().mean()))


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2
