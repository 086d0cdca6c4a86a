"""Keeping a prompt true when its image is mirrored, and knowing which changes of an image its words allow.

"left" in "located in top left of the image" is a place in the picture, and becomes "right" when the picture is mirrored.
"left" in "left ventricle" is a part of the body, and a mirrored heart has none. Only places that are recognised are
changed; a prompt with any other word of direction is not mirrored along it. English only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ACROSS = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
_DOWN = {
    "top": "bottom",
    "bottom": "top",
    "upper": "lower",
    "lower": "upper",
    "topmost": "bottommost",
    "bottommost": "topmost",
}
_MIDDLE = ("center", "centre", "central", "middle")
_ONE = "|".join((*_ACROSS, *_DOWN, *_MIDDLE))
_PLACE = rf"(?:{_ONE})(?:[ -](?:{_ONE}))?"
_PART = r"(?:corner|side|part|half|third|quarter|quadrant|edge|border|region|area)"
_PICTURE = r"(?:image|picture|photo|photograph|frame|view|scan|frontal|lateral)"
# A place is led in by a word such as "in", or followed by what it is a place of; it may be one of a list.
_LIST = rf"{_PLACE}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+or\s+)(?:in\s+|at\s+)?(?:the\s+)?{_PLACE})*"
_LED_IN = rf"\b(?:in|at|on|to|near|towards?|from)\s+(?:the\s+)?{_LIST}(?:\s+{_PART}s?)?"
_OF_PICTURE = rf"\b{_LIST}(?:\s+{_PART}s?)?\s+(?:of|in)\s+(?:the|this|an?)\s+{_PICTURE}"
# What may follow a place that is only led in: not the name of a part of the body.
_END = r"(?=\s*(?:$|[.,;:!?)])|\s+(?:of|in|on|and|with|within|which|that|is|are|near|next|below|above|beside)\b)"
_PHRASE = re.compile(rf"(?:{_OF_PICTURE}\b)|(?:{_LED_IN}\b{_END})", re.IGNORECASE)
_WORD = re.compile(rf"\b(?:{'|'.join((*_ACROSS, *_DOWN))})\b", re.IGNORECASE)
# Direction in words that are no place of the above: mirrored, they would be false or cannot be told.
_OTHER_ACROSS = re.compile(
    r"\b(?:left|right)|\b(?:counter-?|anti-?)?clockwise\b|o'?clock\b|\b(?:medial|lateral(?!\s+(?:view|chest|projection))|nasal|"
    r"temporal|anterior|posterior|eastern?|western?|diagonal)(?:ly)?\b",
    re.IGNORECASE,
)
_OTHER_DOWN = re.compile(
    r"\b(?:top|bottom|upper|lower|above|below|beneath|under|over|upside|upwards?|downwards?|up|down)|"
    r"\b(?:counter-?|anti-?)?clockwise\b|o'?clock\b|\b(?:superior|inferior|cranial|caudal|apical|basal|anterior|posterior|"
    r"proximal|distal|northern?|southern?|diagonal)(?:ly)?\b",
    re.IGNORECASE,
)

# Names of parts of the body: turned or shifted a little, they are what they were.
_BODY = re.compile(
    r"\b(?:left|right|upper|lower|middle|central)\s+(?:(?:upper|lower|middle)\s+)?(?:ventric\w*|atri\w*|lungs?|lobes?|kidneys?|"
    r"breasts?|hemispheres?|eyes?|ears?|hips?|knees?|hands?|foot|feet|arms?|legs?|limbs?|airways?|abdomen|venous|arter\w+|"
    r"carotid|coronary|femur|tibia|clavicles?|hilum|hemidiaphragm)\b",
    re.IGNORECASE,
)
_POSITION = re.compile(
    rf"\b(?:{_ONE}|corners?|sides?|edges?|borders?|quadrants?|halves|half|above|below|beside|peripher\w+)\b",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"\b(?:small|medium|large|tiny|big|huge|little|minute|massive|giant|wide|narrow|thin|thick|smaller|larger|sized?)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"[0-9]|\b(?:no|none|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    r"twenty|dozens?|single|both|pair|double|multiple|several|many|few|some|numerous|scattered|without)\b",
    re.IGNORECASE,
)
_SHAPE = re.compile(
    r"\b(?:round\w*|oval\w*|ovoid\w*|(?:semi)?circ\w+|ellip\w+|irregular\w*|regular\w*|square\w*|rectang\w+|triang\w+|elongat\w+|"
    r"lobul\w+|(?:poly|penta|hexa|octa)g\w+|diamond|teardrop|crescent\w*|star|donut|doughnut|vertical|horizontal|shaped?|shapes|linear|"
    r"curved|straight|smooth|jagged|spiculat\w+)\b",
    re.IGNORECASE,
)
_COLOUR = re.compile(
    r"\b(?:black|white|gr[ae]y(?:ish)?|brown(?:ish)?|pink(?:ish)?|red(?:dish)?|orange|yellow(?:ish)?|green(?:ish)?|blue|bluish|purple|"
    r"violet|tan|beige|peach|gold(?:en)?|silver\w*|pale|colou?r\w*|dark\w*|bright\w*|light\w*|hyper\w+|hypo\w+|an?echoic|opaque|lucent)\b",
    re.IGNORECASE,
)


def mirror_prompt(text: str, *, across: bool = False, down: bool = False) -> str | None:
    """The prompt that is true of the mirrored image, or None where that cannot be told from its words.

    Args:
        text: the prompt.
        across: left and right are swapped.
        down: top and bottom are swapped.
    """
    made, rest, done = [], [], 0
    for phrase in _PHRASE.finditer(text):
        rest.append(text[done : phrase.start()])
        made += [rest[-1], _WORD.sub(lambda word: _swapped(word[0], across, down), phrase[0])]
        done = phrase.end()
    rest.append(text[done:])
    made.append(rest[-1])
    unknown = " | ".join(rest)
    if (across and _OTHER_ACROSS.search(unknown)) or (down and _OTHER_DOWN.search(unknown)):
        return None
    return "".join(made)


def _swapped(word: str, across: bool, down: bool) -> str:
    small = word.lower()
    other = _ACROSS[small] if across and small in _ACROSS else _DOWN[small] if down and small in _DOWN else small
    if other == small:
        return word
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be done to an image so that its prompt stays true.

    Attributes:
        motion: scaling and shifting it: no word of position, size or number.
        bending: turning and elastic deformation: none of these, nor of shape. (Networks see images stretched to a square, in
            which a turn is no pure turn of what was photographed.)
        colour: changing its colours: no word of colour or brightness.
    """

    motion: bool
    bending: bool
    colour: bool


def allowed(text: str) -> Allowed:
    """What the words of a prompt allow; a class name or the empty prompt allow everything."""
    motion = not (_POSITION.search(_BODY.sub(" ", text)) or _SIZE.search(text) or _NUMBER.search(text))
    return Allowed(motion, motion and not _SHAPE.search(text), not _COLOUR.search(text))
