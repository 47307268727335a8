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
# Words that people use for edits: single tokens, alone and at the start of a text.
_EDIT_WORDS = (
    "please can you could i want to i'd like now just hey for me thanks would let's it need should be "
    "prefer get see but a version of the same picture image photo has must look give with show let make "
    "apply wants try how about nice this everything hello there what is who are nothing do leave as keep "
    "don't change anything no changes unchanged return thank where was taken ok tell joke quick brown "
    "fox jumps over lazy dog lorem ipsum dolor sit amet yes test asdf better improve surprise cat on "
    "beach 42 add remove replace put find delete paint open describe explain count move turn draw write "
    "sing cook buy translate rotate crop sky person car two trees hat man text snow red black white "
    "horse her face background sunglasses house weather tomorrow poem my homework price gold green apple "
    "blue chair flowers bridge left tree dinner smile window song sea capital france bird rain lights "
    "door nose old bike table shirt mountain boat wall warm soup cold drink right shoe mirror pencil "
    "desk dark knight bright idea frame and into convert grayscale greyscale monochrome colours from all "
    "colors color take colour out desaturate gray grey drain b&w rid use only shades colorless sketch "
    "drawing line art outlines hand drawn sketched trace edges outline style warmer up tones warmth tint "
    "tone light more orange shift raise temperature cooler cool down colder bluer lower invert negative "
    "reverse swap flip opposite inverted film each by its horizontally in mirrored sideways sides "
    "reflect blur blurry blurred softer soften focus soft smooth gaussian defocus less sharp sharpness "
    "hazy brighter brighten lighter lighten brightness increase exposure darker darken reduce decrease "
    "dim dimmer away some contrast contrasty boost stronger higher high punchier enhance darks pixelate "
    "pixelated pixels pixel blocky big mosaic an video game square blocks squares 8-bit censor sepia "
    "vintage age antique photos aged hundred years night day time scene at midnight set moonlit "
    "moonlight after happen border around surround edge borders thick blend these images both pictures "
    "mix merge combine one them together overlay average other fade double desaturated reversed flipped "
    "reflected defocused brightened darkened made toned nightly framed surrounded blended mixed merged "
    "combined horizontal reflection swapped extra effect darkness slightly bit little somewhat touch "
    "much lot strongly very far way really shot mood filter sepia-toned photograph whole if too needs"
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
    learner.train_from_iterator([_WORDS, *_LINE_STARTS, f" {_EDIT_WORDS}", *_EDIT_WORDS.split()], trainer)
    learned = json.loads(learner.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        extra_special_tokens=list(CONTROL_TOKENS[1:]),  # the first is the class's own default
    )
