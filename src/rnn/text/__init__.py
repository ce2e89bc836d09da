"""Models of text.

language_model    LanguageModel: characters -> a recurrent layer -> a linear head -> probabilities of the next one
    |
corpus            the English text that every CPython comes with
"""

from .corpus import builtin_text
from .language_model import CharacterStream, LanguageModel

__all__ = ["CharacterStream", "LanguageModel", "builtin_text"]
