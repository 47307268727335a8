"""A small vocabulary in the layout of CLIP's, for the pocket checkpoints that read texts as CLIP does."""

from tokenizers import pre_tokenizers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def clip_vocabulary(words: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in CLIP's order: bytes, bytes that end a word, merges, control tokens.

    A word grows letter by letter from its start, so most of ``words`` are one token.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in words.split():
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(pieces)):
            merges["".join(pieces[:end]), pieces[end]] = None
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), BEGIN, END]
    return {token: number for number, token in enumerate(tokens)}, list(merges)
