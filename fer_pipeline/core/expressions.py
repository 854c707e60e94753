"""Map any spelling of a facial expression to the pipeline's canonical name.

The basic expressions are those of Ekman (1992), with `neutral`; contempt is the eighth of AffectNet and FERPlus.
Labels are always mapped by name and never by number, since every data set numbers them differently. `none` is no
spelling of neutral: AffectNet calls so what shows none of its expressions, and pandas a value that is missing.
"""

BASIC_7 = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
BASIC_8 = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")

_SPELLINGS = {
    "anger": ("angry", "an", "ang"),
    "contempt": ("contemptuous", "co", "con"),
    "disgust": ("disgusted", "di", "dis"),
    "fear": ("fearful", "afraid", "scared", "fe", "fea"),
    "happiness": ("happy", "joy", "smile", "ha", "hap"),
    "neutral": ("neutrality", "ne", "neu", "normal"),
    "sadness": ("sad", "sa"),
    "surprise": ("surprised", "su", "sur", "suprise"),
}
_CANONICAL = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in (name, *spellings)}


def canonical(name: str) -> str:
    """Returns the canonical name of an expression; an unknown spelling comes back stripped and in lower case."""
    plain = name.strip().lower()
    return _CANONICAL.get(plain, plain)
