"""The pocket checkpoint's tokenizer: Qwen's splitting rules and control tokens over a small vocabulary.

Bytes are the base, so any text works. The words of the family's prompt template are single tokens, as
they are in the real vocabulary: the pipelines drop a fixed count of 64 template tokens.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

# Source: tokenizer_config.json of Qwen/Qwen2.5-VL-7B-Instruct, in its order.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_WORDS = (
    "system user assistant Describe the key features of the input image (color, shape, size, texture, "
    "objects, background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with the "
    "original input where appropriate. Picture 1: make add remove replace turn it into change red blue "
    "green yellow black white sky more dramatic night day winter summer sunset snow rain photo painting "
    "drawing sketch style person face cat dog house car tree bright dark blurry low quality"
)
_LINE_STARTS = ("Describe", "user", "assistant")  # no space before them, so other tokens


def build_tokenizer() -> Qwen2Tokenizer:
    """Deterministic; a few hundred tokens, control tokens last."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than there are merges: every word above becomes one token
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator([_WORDS, *_LINE_STARTS], trainer)
    learned = json.loads(learner.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        extra_special_tokens=list(CONTROL_TOKENS[1:]),  # the first is the class's own default
    )
