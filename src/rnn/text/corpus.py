"""A text that every CPython comes with, so that a first model needs no download."""

from __future__ import annotations

__all__ = ["builtin_text"]


def builtin_text() -> str:
    """Python's own help topics, in alphabetical order of their names: English, some 460,000 characters, 100 distinct.

    The text differs a little from one Python version to the next, and is always the same within one.

    >>> from fastrnn.text.corpus import builtin_text
    >>> len(builtin_text()) > 300_000
    True

    Raises RuntimeError if this Python comes without the module ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise RuntimeError("this Python comes without pydoc_data, the built-in text; train on a file instead") from None
    return "\n\n".join(topics[name] for name in sorted(topics))
