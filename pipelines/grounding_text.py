"""The caption that Grounding DINO reads: labels one after the other, and where each of them stands in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.models.bert.tokenization_bert import BertTokenizer

from core.errors import CapacityError
from core.limits import invalid

# The places of [CLS], [SEP], full stop and question mark in the vocabulary of google-bert/bert-base-uncased:
# between two of them words see each other. Source: SPECIAL_TOKENS of transformers'
# modeling_grounding_dino.py, which knows them by number.
_BEGIN, _END, _STOP, _ = SEPARATORS = (101, 102, 1012, 1029)


@dataclass(frozen=True, slots=True)
class Caption:
    """ids: of all tokens, control tokens included. places: of each label's own tokens among them."""

    ids: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]


def read_tokenizer(folder: Path) -> BertTokenizer:
    """Raises ``CapacityError`` ``not_ready`` for a vocabulary that the model was not made for."""
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"]) != list(SEPARATORS):
        raise CapacityError(
            "not_ready",
            "the checkpoint's tokenizer lacks the vocabulary of google-bert/bert-base-uncased, on which the "
            "model relies; use the one that the model was trained with",
            retryable=False,
        )
    return tokenizer


def write_caption(tokenizer: BertTokenizer, labels: Sequence[str], limit: int) -> Caption:
    """Each label in lower case, a full stop after it.

    A separator inside a label parts it for the model, as it would in any caption, and all parts stand for the
    label; those at its ends add nothing and are left out.

    limit: tokens that the model reads; upstream cuts off the rest.
    Raises ``RequestError`` ``invalid_parameter``.
    """
    ids, places = [_BEGIN], []
    for label in labels:
        words = _words(tokenizer, label)
        places.append(tuple(len(ids) + i for i, token in enumerate(words) if token not in SEPARATORS))
        ids += [*words, _STOP]
    ids.append(_END)
    if len(ids) > limit:
        raise invalid(
            "labels",
            f"labels of {len(ids)} tokens together are over the limit of {limit}; "
            "send fewer or shorter ones, or ask for some of them in a request of their own",
        )
    return Caption(tuple(ids), tuple(places))


def _words(tokenizer: BertTokenizer, label: str) -> list[int]:
    words = list(tokenizer(label.strip().lower(), add_special_tokens=False)["input_ids"])
    while words and words[-1] in SEPARATORS:
        words.pop()
    while words and words[0] in SEPARATORS:
        words.pop(0)
    if not words:
        raise invalid("labels", "one of labels has no word in it; say what to find or leave it out")
    return words
