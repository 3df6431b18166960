"""The lexicon: objects with invented names whose colour, shape and motion only video tells."""

from vlkd.data.lexicon.audit import audit
from vlkd.data.lexicon.words import ATTRIBUTES, Choice, Lexicon

__all__ = ["ATTRIBUTES", "Choice", "Lexicon", "audit"]
