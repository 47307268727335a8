"""Writes ``pocket-grounding-dino`` to disk: Grounding DINO's architecture at the size of a test, untrained.

Its boxes and scores follow picture and words, and mean nothing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.grounding_dino.configuration_grounding_dino import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from transformers.models.swin.configuration_swin import SwinConfig

from pipelines.pocket.drawing import redraw
from pipelines.pocket.folder import write_once

_WIDTH = 32  # a channel for each group that the library normalises
# Layout and flags of IDEA-Research/grounding-dino-tiny; widths and depths are what tests can afford.
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 7,
    "image_size": 224,
    "out_indices": [2, 3, 4],
    "drop_path_rate": 0.0,
}
BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
DETECTOR: dict[str, Any] = {
    "d_model": _WIDTH,
    "encoder_layers": 2,
    "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "decoder_attention_heads": 4,
    "num_queries": 24,
    "num_feature_levels": 4,
}
SIZE = {"shortest_edge": 128, "longest_edge": 213}
# At unit gain every score is near 0 or 1, and boxes gather at one edge.
GAINS = {
    "decoder.layer_norm.weight": 0.5,
    "query_position_embeddings.weight": 4.0,
    "bbox_embed.0.layers.2.weight": 0.7,
}
_WORDS = (
    "a an the of on in by with and red green blue black white small large cat dog bird car tree lamp road "
    "person man woman face hand house door window table chair cup bottle book phone remote control"
)


def build(parent: Path) -> Path:
    """The checkpoint's folder under ``parent``; see ``write_once``."""
    return write_once(parent, "pocket-grounding-dino", _write)


def _write(folder: Path) -> None:
    tokenizer = build_tokenizer()
    bert = BertConfig(vocab_size=len(tokenizer), **BERT)
    config = GroundingDinoConfig(backbone_config=SwinConfig(**SWIN), text_config=bert, **DETECTOR)
    model = GroundingDinoForObjectDetection(config)
    redraw(model, torch.float32, GAINS)
    _make_boxes_worth_drawing(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": SIZE}) + "\n")


def _make_boxes_worth_drawing(model: GroundingDinoForObjectDetection) -> None:
    """Queries and words get opposite means, so that few of their products pass a threshold; what does is
    larger than what the encoder proposes, a twentieth of the picture."""
    with torch.no_grad():
        model.model.decoder.layer_norm.bias.fill_(1.0 / _WIDTH**0.5)
        model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after.bias.fill_(-5.0 / _WIDTH**0.5)
        model.bbox_embed[0].layers[-1].bias[2:] = 0.8  # logarithms of width and height, in each layer


def build_tokenizer() -> BertTokenizer:
    """Words, and letters for all others, at the places that the model knows by number.

    Source: vocab.txt of google-bert/bert-base-uncased: control tokens from 100, and from 999 on the
    printable characters of ASCII without its capitals.
    """
    vocabulary = {"[PAD]": 0} | {f"[unused{i}]": i for i in range(1, 999) if not 100 <= i <= 103}
    vocabulary |= {"[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    letters = [character for character in characters if character.isalnum()]
    words = [word for word in _WORDS.split() if len(word) > 1]
    for token in (*characters, *(f"##{letter}" for letter in letters), *words):
        vocabulary[token] = max(vocabulary.values()) + 1
    return BertTokenizer(vocab=vocabulary)
