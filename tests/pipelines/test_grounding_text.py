"""The caption: what upstream would make of the same labels, and which of its tokens are whose."""

from pathlib import Path

import pytest
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.grounding_dino.modeling_grounding_dino import SPECIAL_TOKENS
from transformers.models.grounding_dino.processing_grounding_dino import _merge_candidate_labels_text

from core.errors import CapacityError, RequestError
from pipelines.grounding_text import SEPARATORS, read_tokenizer, write_caption
from pipelines.pocket.grounding_dino import build_tokenizer

LIMIT = 256


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return build_tokenizer()


def words_at(tokenizer: BertTokenizer, ids: tuple[int, ...], places: tuple[int, ...]) -> str:
    return str(tokenizer.decode([ids[place] for place in places]))


def test_the_pocket_vocabulary_has_the_real_ones_places(tokenizer: BertTokenizer) -> None:
    """The model knows them by number: elsewhere, words of two labels would see each other."""
    assert list(SEPARATORS) == SPECIAL_TOKENS
    assert tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"]) == SPECIAL_TOKENS
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "!", "a", "z"]) == [0, 100, 999, 1037, 1062]


@pytest.mark.parametrize(
    "labels",
    [
        ("cat",),
        ("a cat", "Red Car"),
        ("  spaces  around ", "line\nbreak", "tab\tbetween"),
        ("red car", "blue car", "red car"),
        ("Crème Brûlée", "ÅNGSTRÖM", "naïve café"),
        ("猫", "a 猫 b", "🙂", "x" * 120),
        ("cat, dog & co; 3-door (red)", "it's", "50%"),
        ("[SEP]", "[CLS] cat", "zero\u200bwidth", "e\u0301"),
    ],
    ids=str,
)
def test_a_caption_has_upstreams_tokens(tokenizer: BertTokenizer, labels: tuple[str, ...]) -> None:
    """Token for token what the library's processor gives for the same list, whatever the script."""
    merged = _merge_candidate_labels_text(list(labels))
    assert list(write_caption(tokenizer, labels, LIMIT).ids) == tokenizer(merged)["input_ids"]


def test_every_label_knows_its_own_tokens(tokenizer: BertTokenizer) -> None:
    """Words that two labels share stand in two places, and no separator is anybody's."""
    caption = write_caption(tokenizer, ("Red car", "blue car", "lamp by the road"), LIMIT)
    told = [words_at(tokenizer, caption.ids, places) for places in caption.places]
    assert told == ["red car", "blue car", "lamp by the road"]
    everyones = [place for places in caption.places for place in places]
    assert len(set(everyones)) == len(everyones)
    assert {caption.ids[i] for i in set(range(len(caption.ids))) - set(everyones)} <= set(SEPARATORS)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("a cat.", "a cat"),
        ("cat?!", "cat ?!"),
        ("..cat..?", "cat"),
        ("u.s. flag", "u s flag"),
        ("cat. dog", "cat dog"),
        ("what? cat", "what cat"),
    ],
)
def test_separators_of_a_label_do_not_shift_the_others(
    tokenizer: BertTokenizer, label: str, words: str
) -> None:
    """Counting full stops would give the tokens after them to the wrong label."""
    caption = write_caption(tokenizer, ("tree", label, "Lamp"), LIMIT)
    before, own, after = (words_at(tokenizer, caption.ids, places) for places in caption.places)
    assert (before, after) == ("tree", "lamp")
    assert own.replace(" ", "") == words.replace(" ", "").replace("?", "")
    assert all(caption.ids[place] not in SEPARATORS for place in caption.places[1])


def test_separators_inside_stay_where_they_are(tokenizer: BertTokenizer) -> None:
    """As in any caption of upstream's: what they part does not see each other."""
    caption = write_caption(tokenizer, ("cat. dog",), LIMIT)
    assert list(caption.ids) == tokenizer("cat. dog.")["input_ids"]
    assert write_caption(tokenizer, ("cat.",), LIMIT).ids == write_caption(tokenizer, ("cat",), LIMIT).ids


@pytest.mark.parametrize("label", [".", "?", " . ? ", "\u200b", "..."])
def test_a_label_without_a_word_is_refused(tokenizer: BertTokenizer, label: str) -> None:
    """It could never be found, and the labels after it could be taken for it."""
    with pytest.raises(RequestError, match="no word in it") as caught:
        write_caption(tokenizer, ("cat", label), LIMIT)
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "labels")


def test_more_tokens_than_the_model_reads_are_refused(tokenizer: BertTokenizer) -> None:
    """Upstream cuts them off without a word, and what was asked for last is never found."""
    fits = ["cat"] * 127  # two tokens each, and two at the ends
    assert len(write_caption(tokenizer, fits, LIMIT).ids) == LIMIT
    with pytest.raises(RequestError, match="labels of 258 tokens together are over the limit of 256; send"):
        write_caption(tokenizer, [*fits, "dog"], LIMIT)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """With it, labels would run into each other and every answer would be a little wrong."""
    BertTokenizer(
        vocab={token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "."))}
    ).save_pretrained(tmp_path)
    with pytest.raises(CapacityError, match="bert-base-uncased") as caught:
        read_tokenizer(tmp_path)
    assert caught.value.code == "not_ready"
