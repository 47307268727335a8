"""What people say for each edit: a grammar for training, and sentences of other make for measuring.

A text is a frame ("please {}", "can you {}?") around a phrase of the edit, with a strength word where one
makes sense. Text that belongs to no edit is its own class: the picture then stays as it is.
"""

import random
from dataclasses import dataclass

STRENGTHS = {"slightly": 0.5, "": 1.0, "strongly": 1.5}

BLEND = "blend"
UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Wish:
    """A text and what it asks for: a key of ``OPERATIONS`` (or ``BLEND``) at a strength."""

    text: str
    operation: str
    strength: float = 1.0


_FRAMES = (
    "{}",
    "{}",
    "{}",
    "please {}",
    "{} please",
    "{}, please",
    "can you {}?",
    "could you {}",
    "could you please {}",
    "I want you to {}",
    "I'd like you to {}",
    "now {}",
    "just {}",
    "hey, {}",
    "{} for me",
    "{} thanks",
    "would you {}",
    "let's {}",
)

_THING = ("it", "this", "the image", "the picture", "the photo", "this image", "this picture", "this photo", "everything")

# {x} is the thing, {s} a strength word or nothing. Phrases are imperative, so that every frame fits.
_PHRASES: dict[str, tuple[str, ...]] = {
    "black and white": (
        "make {x} black and white", "turn {x} into black and white", "convert {x} to black and white",
        "make {x} grayscale", "convert {x} to grayscale", "turn {x} into greyscale", "make {x} monochrome",
        "turn {x} monochrome", "remove the colours from {x}", "remove all colors", "remove the color",
        "take the colour out of {x}", "desaturate {x}", "make {x} gray", "make {x} grey", "drain the colors",
        "make {x} b&w", "turn {x} into a black and white photo", "make a black and white version of {x}",
        "give {x} a monochrome look", "get rid of the colour", "use only shades of grey", "make {x} colorless",
    ),
    "sketch": (
        "turn {x} into a sketch", "make {x} a sketch", "make {x} look like a drawing", "sketch {x}",
        "turn {x} into a pencil drawing", "make {x} a pencil sketch", "draw {x} with a pencil",
        "convert {x} to a sketch", "convert {x} to line art", "make {x} line art", "show only the outlines",
        "draw the outlines of {x}", "turn {x} into a line drawing", "make {x} look hand drawn",
        "make {x} look sketched", "trace the edges", "make {x} look like a pencil sketch", "outline {x}",
        "give {x} a sketch style", "make {x} look drawn with pencil",
    ),
    "warmer": (
        "make {x} {s} warmer", "make the colours {s} warmer", "use {s} warmer colours", "give {x} {s} warmer colors",
        "{s} warm up {x}", "{s} warm {x} up", "make the tones {s} warmer", "use {s} warmer tones", "add warmth",
        "add a warm tint", "make {x} look {s} warmer", "give {x} a warm tone", "give {x} a warm look",
        "warm the colors {s}", "make the light {s} warmer", "give {x} warm light", "add {s} more warmth to {x}",
        "make {x} {s} more orange", "shift the colours to orange", "raise the color temperature",
    ),
    "cooler": (
        "make {x} {s} cooler", "make the colours {s} cooler", "use {s} cooler colours", "give {x} {s} cooler colors",
        "{s} cool down {x}", "{s} cool {x} down", "make the tones {s} cooler", "use {s} cooler tones", "make {x} {s} colder",
        "add a cool tint", "make {x} look {s} colder", "give {x} a cold tone", "give {x} a cool look",
        "cool the colors {s}", "make the light {s} cooler", "give {x} cold light", "make {x} {s} more blue",
        "make {x} {s} bluer", "shift the colours to blue", "lower the color temperature", "add a cold look",
    ),
    "invert": (
        "invert {x}", "invert the colours", "invert the colors of {x}", "invert all colors", "make {x} a negative",
        "turn {x} into a negative", "make {x} look like a negative", "reverse the colours", "make a colour negative of {x}",
        "swap light and dark", "convert {x} to a negative", "show the negative of {x}", "flip the colors to the opposite",
        "make the colours opposite", "use inverted colours", "make {x} inverted", "reverse all colors of {x}",
        "make {x} look like film negative", "replace each color by its opposite",
    ),
    "flip": (
        "flip {x}", "flip {x} left to right", "flip {x} horizontally", "mirror {x}", "mirror {x} horizontally",
        "make a mirror image of {x}", "turn {x} into a mirror image", "swap left and right", "flip {x} from left to right",
        "show {x} in a mirror", "make {x} mirrored", "reverse {x} left to right", "flip {x} sideways",
        "flip the left and right sides", "reflect {x}", "reflect {x} horizontally", "mirror {x} left to right",
        "show the mirror image", "horizontally flip {x}", "flip {x} right to left",
    ),
    "blur": (
        "blur {x} {s}", "{s} blur {x}", "make {x} {s} blurry", "make {x} {s} blurred", "make {x} {s} softer",
        "soften {x} {s}", "make {x} {s} out of focus", "add a blur", "add a {s} blur to {x}", "apply a {s} blur", "give {x} a {s} soft focus",
        "smooth {x} {s}", "smooth {x} out {s}", "make {x} look {s} out of focus", "apply gaussian blur", "defocus {x} {s}",
        "make {x} {s} less sharp", "make {x} look {s} blurry", "take the sharpness out of {x}", "make {x} hazy",
    ),
    "brighter": (
        "make {x} {s} brighter", "brighten {x} {s}", "{s} brighten {x}", "brighten {x} up {s}", "make {x} {s} lighter",
        "lighten {x} {s}", "raise the brightness {s}", "increase the brightness {s}", "turn the brightness up {s}",
        "add {s} more light", "give {x} {s} more light", "light {x} up {s}", "make {x} look {s} brighter", "turn up the brightness {s}",
        "{s} increase the exposure", "raise the exposure", "add brightness", "give {x} {s} more brightness",
        "make {x} {s} more bright",
    ),
    "darker": (
        "make {x} {s} darker", "darken {x} {s}", "{s} darken {x}", "lower the brightness {s}", "reduce the brightness {s}",
        "decrease the brightness {s}", "turn the brightness down {s}", "make {x} {s} less bright", "dim {x} {s}", "make {x} {s} dimmer",
        "take away {s} some light", "give {x} {s} less light", "make {x} look {s} darker", "turn down the brightness {s}",
        "{s} decrease the exposure", "lower the exposure", "use {s} less light", "give {x} {s} less brightness",
        "dim the lights {s}",
    ),
    "contrast": (
        "add {s} more contrast", "make {x} {s} more contrasty", "increase the contrast {s}", "{s} increase the contrast", "raise the contrast {s}",
        "more contrast {s}", "boost the contrast {s}", "give {x} {s} more contrast", "turn up the contrast {s}",
        "turn the contrast up {s}", "make the contrast {s} stronger", "make the contrast {s} higher", "use {s} higher contrast",
        "add contrast {s}", "make {x} high contrast", "give {x} {s} stronger contrast", "make {x} {s} punchier", "enhance the contrast {s}",
        "make darks darker and lights lighter",
    ),
    "pixelate": (
        "pixelate {x}", "make {x} pixelated", "make {x} look pixelated", "turn {x} into pixels", "turn {x} into pixel art",
        "make {x} pixel art", "make {x} blocky", "show {x} in big pixels", "turn {x} into a mosaic", "make a mosaic of {x}",
        "make {x} look like an old video game", "use big square pixels", "make the pixels big", "give {x} a mosaic look",
        "turn {x} into blocks", "turn {x} into big squares", "give {x} an 8-bit look", "convert {x} to pixel art",
        "apply a mosaic to {x}", "censor {x} with pixels",
    ),
    "sepia": (
        "make {x} sepia", "turn {x} sepia", "add a sepia tone", "give {x} a sepia tone", "convert {x} to sepia",
        "make {x} look like an old photo", "make {x} look old", "give {x} an old photo look", "make {x} look vintage",
        "give {x} a vintage look", "age {x}", "make {x} an antique photo", "apply sepia", "use sepia tones", "make {x} look antique",
        "turn {x} into an old brown photo", "make {x} brown like old photos", "give {x} an aged look",
        "turn {x} into a vintage photo", "make {x} look a hundred years old",
    ),
    "night": (
        "make {x} look like night", "turn day into night", "make {x} night", "make it night time", "turn {x} into a night scene",
        "make {x} a night scene", "make {x} look like it was taken at night", "show {x} at night", "change the time to night",
        "make {x} look like midnight", "set the scene at night", "turn {x} into night", "make {x} moonlit", "add moonlight",
        "show {x} in the moonlight", "change {x} to night", "make {x} look like after dark", "make {x} happen at night",
        "change day to night", "give {x} a night look",
    ),
    **{
        f"{colour} border": tuple(
            phrase.replace("COLOUR", colour)
            for phrase in (
                "add a COLOUR border", "add a COLOUR frame", "put a COLOUR border around {x}", "put a COLOUR frame around {x}",
                "give {x} a COLOUR border", "give {x} a COLOUR frame", "frame {x} in COLOUR", "draw a COLOUR border around {x}",
                "draw a COLOUR frame", "surround {x} with a COLOUR border", "add a COLOUR edge", "add COLOUR borders to {x}",
                "put {x} in a COLOUR frame", "make a COLOUR border", "outline {x} with a COLOUR border", "add COLOUR edges",
                "paint the edges COLOUR", "make the border COLOUR", "border {x} in COLOUR", "add a thick COLOUR border",
            )
        )
        for colour in ("red", "blue", "green", "white", "black")
    },
    BLEND: (
        "blend these images", "blend the two images", "blend both pictures", "mix these images", "mix the two pictures",
        "merge these images", "combine both images", "combine the two photos", "merge both photos into one",
        "blend them together", "mix them", "make one image of both", "overlay the two pictures", "average the two images",
        "put one image over the other", "fade one picture into the other", "make a double exposure", "merge them together",
    ),
}  # fmt: skip

# What the result is called: {a} an adjective, {n} a noun phrase.
_LOOK_FRAMES = (
    "{a}", "{a}, please", "I want it {a}", "I need {x} {a}", "{x} should be {a}", "I'd prefer it {a}", "can you get {x} {a}",
    "I want to see {x} {a}", "{x} but {a}", "a {a} version of {x}", "the same picture but {a}", "I want a {a} picture", "{a} image",
    "{a} photo", "it has to be {a}", "it must look {a}",
)  # fmt: skip
_NOUN_FRAMES = (
    "{n}", "{n}, thanks", "I want {n}", "give me {n}", "can I get {n}", "{x} with {n}", "I need {n}", "I'd like {n}", "show me {n}",
    "let me see {n}", "make {n}", "apply {n}", "it wants {n}", "try {n}", "how about {n}", "{n} would be nice",
)  # fmt: skip
_LOOKS: dict[str, tuple[str, ...]] = {
    "black and white": ("black and white", "grayscale", "greyscale", "monochrome", "desaturated", "colorless", "gray"),
    "sketch": ("sketched", "hand drawn", "drawn in pencil", "pencil drawn"),
    "warmer": ("{s} warmer", "{s} warmer in tone", "{s} more orange", "warm"),
    "cooler": ("{s} cooler", "{s} colder", "{s} bluer", "cold", "{s} cooler in tone"),
    "invert": ("inverted", "negative", "reversed in colour", "color inverted"),
    "flip": ("mirrored", "flipped", "flipped horizontally", "reflected", "flipped left to right"),
    "blur": ("{s} blurred", "{s} blurry", "{s} softer", "{s} out of focus", "defocused", "hazy"),
    "brighter": ("{s} brighter", "{s} lighter", "bright", "{s} brightened", "light"),
    "darker": ("{s} darker", "{s} dimmer", "dark", "{s} darkened", "dim"),
    "contrast": ("{s} more contrasty", "{s} higher in contrast", "high contrast", "{s} punchier"),
    "pixelate": ("pixelated", "blocky", "8-bit", "made of big squares"),
    "sepia": ("sepia", "vintage", "antique", "aged", "sepia toned", "old and brown"),
    "night": ("at night", "moonlit", "nightly", "after dark", "by night"),
    **{f"{c} border": (f"framed in {c}", f"surrounded with {c}", f"{c} framed") for c in ("red", "blue", "green", "white", "black")},
    BLEND: ("blended", "mixed", "merged together", "combined into one"),
}  # fmt: skip
_NOUNS: dict[str, tuple[str, ...]] = {
    "black and white": ("a black and white version", "no colour", "shades of grey", "a grayscale photo", "monochrome"),
    "sketch": ("a sketch", "a pencil drawing", "line art", "a line drawing", "outlines only", "a pencil sketch of it"),
    "warmer": ("{s} warmer colours", "{s} more warmth", "{s} warmer light", "a warm tone", "warm colors", "{s} warmer tones"),
    "cooler": ("{s} cooler colours", "{s} more blue", "{s} colder light", "a cold tone", "cold colors", "{s} cooler tones"),
    "invert": ("a negative", "inverted colours", "the negative", "reversed colours", "opposite colors", "an inverted version"),
    "flip": ("a mirror image", "the mirror image", "a horizontal flip", "a reflection", "left and right swapped", "a flip"),
    "blur": ("{s} more blur", "a {s} blur", "soft focus", "a gaussian blur", "{s} less sharpness", "a blurred version"),
    "brighter": ("{s} more light", "{s} more brightness", "a brighter version", "{s} brighter light", "more exposure"),
    "darker": ("{s} less light", "{s} less brightness", "a darker version", "{s} darker light", "less exposure"),
    "contrast": ("{s} more contrast", "{s} stronger contrast", "{s} higher contrast", "a contrast boost", "extra contrast"),
    "pixelate": ("pixel art", "a mosaic", "big pixels", "big square blocks", "a pixel effect", "square pixels"),
    "sepia": ("a sepia tone", "a vintage look", "an old photo look", "sepia", "a sepia photo", "an antique look"),
    "night": ("a night scene", "moonlight", "a night look", "night time", "midnight", "darkness of night", "night"),
    **{
        f"{c} border": (f"a {c} border", f"a {c} frame", f"{c} borders", f"{c} edges", f"a thick {c} border", f"a frame in {c}")
        for c in ("red", "blue", "green", "white", "black")
    },
    BLEND: ("a blend", "a mix of both", "one image of the two", "an overlay of both", "a double exposure", "both in one"),
}  # fmt: skip

_FILLERS = (
    "I", "you", "this", "that", "the", "a", "whole", "photo", "picture", "image", "feel", "as", "like", "can", "have", "should", "be",
    "want", "it", "is", "of", "in", "to", "with", "please", "now", "so", "and", "some", "my", "here", "look", "would", "for", "me",
    "thing", "around", "all", "just", "make", "get", "version", "kind", "too", "needs", "really", "maybe", "one", "effect", "style",
)  # fmt: skip

_ADVERBS = {
    0.5: ("slightly", "a bit", "a little", "a little bit", "somewhat", "a touch"),
    1.5: ("much", "a lot", "strongly", "very", "far", "way", "really", "very much"),
}

_STRANGE_VERBS = (
    "add", "remove", "replace", "put", "find", "delete", "paint", "open", "describe", "explain", "count", "move", "change",
    "make", "turn", "give", "show", "draw", "write", "sing", "cook", "buy", "tell me about", "translate", "rotate", "crop",
)  # fmt: skip
_STRANGE_NOUNS = (
    "a dog", "the cat", "the sky", "a person", "the car", "two trees", "a hat on the man", "the text", "snow", "a red car",
    "the black cat", "a white horse", "her face", "the background", "sunglasses", "a house", "the weather tomorrow", "a poem",
    "my homework", "the price of gold", "a green apple", "the blue chair", "flowers", "a bridge", "the left tree", "dinner",
    "a smile", "the window", "a song about the sea", "the capital of France", "a bird", "rain", "the lights", "a door",
    "the nose", "my old bike", "a table", "the shirt", "the mountain", "a boat", "the wall", "a warm soup", "a cold drink",
    "the right shoe", "a mirror on the wall", "a pencil on the desk", "the dark knight", "a bright idea", "the frame of the car",
)  # fmt: skip
_STRANGE = (
    "hello", "hello there", "what is this?", "who are you", "nothing", "do nothing", "leave it as it is", "keep it the same",
    "don't change anything", "no changes please", "keep the picture as it is", "leave the image unchanged", "return it unchanged",
    "how are you", "I like this photo", "nice picture", "thank you", "what do you see?", "where was this taken?", "ok",
    "tell me a joke", "the quick brown fox jumps over the lazy dog", "lorem ipsum dolor sit amet", "yes", "no", "test",
    "asdf", "make it nice", "make it better", "improve it", "surprise me", "a cat", "a photo of a dog on a beach", "42", "?",
)  # fmt: skip


def say(operation: str, strength: float, draw: random.Random) -> Wish:
    """A training text for an edit. strength: one of ``STRENGTHS``' values, where the edit has any."""
    if operation == UNCHANGED:
        text = _disturb(_strange(draw), draw)
        while _plain(text) in _KEPT_APART:
            text = _disturb(_strange(draw), draw)
        return Wish(text, UNCHANGED)
    if not has_strength(operation):
        strength = 1.0
    adverb = draw.choice(_ADVERBS[strength]) if strength != 1.0 else ""
    text = ""
    while not text or _plain(text) in _KEPT_APART:
        text = _frame(*draw.choices(_FORMS, (4, 2, 2))[0], operation, strength != 1.0, draw)
        text = " ".join(text.replace("{x}", draw.choice(_THING)).replace("{s}", adverb).split())
        text = _disturb(_surround(text, draw), draw)
    return Wish(text, operation, strength)


def has_strength(operation: str) -> bool:
    return any("{s}" in phrase for phrase in _PHRASES.get(operation, ()))


def _frame(
    frames: tuple[str, ...], forms: dict[str, tuple[str, ...]], operation: str, strong: bool, draw: random.Random
) -> str:
    phrases = [phrase for phrase in forms[operation] if not strong or "{s}" in phrase]
    frame = draw.choice(frames)
    for place in ("{}", "{a}", "{n}"):
        frame = frame.replace(place, draw.choice(phrases))
    return frame


def _surround(text: str, draw: random.Random) -> str:
    """Words that mean nothing here, so that the known frames are not learned by heart."""
    if draw.random() < 0.35:
        text = " ".join([*(draw.choice(_FILLERS) for _ in range(draw.randint(1, 4))), text])
    if draw.random() < 0.25:
        text = " ".join([text, *(draw.choice(_FILLERS) for _ in range(draw.randint(1, 3)))])
    return text


def _plain(text: str) -> str:
    return text.lower().replace("colour", "color").rstrip(".!? ")


def words() -> list[str]:
    """Every word of the grammar, once, in its order."""
    texts = [*_FRAMES, *_LOOK_FRAMES, *_NOUN_FRAMES, *_THING, *_STRANGE, *_STRANGE_VERBS, *_STRANGE_NOUNS]
    texts += [phrase for forms in (_PHRASES, _LOOKS, _NOUNS) for phrases in forms.values() for phrase in phrases]
    texts += [adverb for adverbs in _ADVERBS.values() for adverb in adverbs]
    texts += _EXTRA
    spaced = " ".join(texts).replace("{}", " ")
    for place in ("{x}", "{s}", "{a}", "{n}"):
        spaced = spaced.replace(place, " ")
    return list(dict.fromkeys(spaced.split()))


_EXTRA = ("colour colours color colors grey gray scene shot tone mood style effect filter",)


def _strange(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.35:
        return draw.choice(_STRANGE)
    if kind < 0.8:
        text = f"{draw.choice(_STRANGE_VERBS)} {draw.choice(_STRANGE_NOUNS)}"
        return draw.choice(_FRAMES).format(text)
    if kind < 0.9:
        pool = words()
        return " ".join(draw.choice(pool) for _ in range(draw.randint(2, 6)))
    return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz    ") for _ in range(draw.randint(3, 30))).strip() or "x"


def _disturb(text: str, draw: random.Random) -> str:
    """Capitals, a full stop, the other spelling of colour."""
    if draw.random() < 0.3:
        swap = ("colour", "color") if draw.random() < 0.5 else ("color", "colour")
        text = text.replace("colour", "color").replace("color", swap[1])
    kind = draw.random()
    if kind < 0.35:
        text = text[:1].upper() + text[1:]
    elif kind < 0.4:
        text = text.upper()
    if draw.random() < 0.3:
        text += draw.choice((".", "!", "...", " now"))
    return text


# Of other make than the grammar's; never trained on (tests/training/test_wording.py holds them apart).
HELD_OUT: dict[str, tuple[str, ...]] = {
    "black and white": ("black and white please", "I want this in grayscale", "get all the color out of this photo", "monochrome version"),
    "sketch": ("pencil sketch", "make this picture into a pencil drawing", "I want a line drawing of this", "can I have this as a sketch?"),
    "warmer": ("warmer colours please", "this should look warmer", "I would like warm tones", "make the whole photo feel warmer"),
    "cooler": ("cooler colours please", "this should look cooler", "I would like cold tones", "make the whole photo feel colder"),
    "invert": ("a negative of this photo please", "colors inverted", "I want the inverted picture", "give me the opposite colours"),
    "flip": ("mirrored please", "I want left and right swapped", "horizontal flip", "show me the mirrored version"),
    "red border": ("red frame around the whole thing", "I want a border in red", "a red border please", "with a thick red frame"),
    "blur": ("everything out of focus please", "I want this blurred", "a blur effect", "this should be soft and blurry"),
    "brighter": ("brighter please", "this needs more light", "too dark, brighten the whole photo", "I want a lighter picture"),
    "darker": ("darker please", "this needs less light", "too bright, darken the whole photo", "I want a dimmer picture"),
    "contrast": ("more contrast please", "this needs stronger contrast", "I want higher contrast", "contrast up"),
    "pixelate": ("big pixels please", "I want this as pixel art", "a mosaic of square blocks", "pixelated version"),
    "sepia": ("sepia please", "I want an old sepia photograph", "like a vintage photo", "sepia toned version"),
    "night": ("night scene please", "I want this at night", "as if taken at midnight", "this should look like night time"),
    UNCHANGED: ("where is the train station?", "add a purple elephant", "qwertz uiop", "good morning everyone"),
    BLEND: ("a mix of the two", "both images blended into one", "I want them merged", "double exposure please"),
}  # fmt: skip

_KEPT_APART = frozenset(_plain(text) for texts in HELD_OUT.values() for text in texts)
_FORMS = ((_FRAMES, _PHRASES), (_LOOK_FRAMES, _LOOKS), (_NOUN_FRAMES, _NOUNS))
