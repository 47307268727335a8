"""bitsandbytes' int8 layer for activations beyond fp16. Imports bitsandbytes: only when it is chosen."""

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from torch import Tensor, nn


class Int8Linear(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """LLM.int8 without its outlier columns (threshold 0), each row scaled before bitsandbytes sees it.

    Upstream casts activations to fp16 first and writes products as fp16 on a GPU, so that an activation of
    1e5, which bf16 holds, becomes infinite. Rows are rounded to int8 relative to their own largest value
    anyway: scaling that value to 1 beforehand changes nothing else. No row depends on another: outlier
    columns, which would, are off. Source: ``MatMul8bitLt.forward`` of bitsandbytes 0.50.2.
    """

    @classmethod
    def of(cls, linear: nn.Linear, device: torch.device) -> "Int8Linear":
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            has_fp16_weights=False,
            threshold=0.0,
            device="meta",
        )
        weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        layer.weight = weight.to(device)  # quantizes
        layer.bias = linear.bias
        layer.init_8bit_state()
        layer.requires_grad_(False).eval()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] in any format; answers [..., out] in the same."""
        rows = x.reshape(-1, x.shape[-1]).float()
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-30)
        rounded, scales, _ = int8_vectorwise_quant((rows / largest).half(), threshold=0.0)
        product = torch.ops.bitsandbytes.int8_scaled_mm.default(
            rounded, self.state.CB, scales, self.state.SCB, bias=None, dtype=torch.float16
        )
        answer: Tensor = (product.float() * largest).to(x.dtype)
        if self.bias is not None:
            answer += self.bias
        return answer.reshape(*x.shape[:-1], -1)
