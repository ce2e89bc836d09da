"""Vectors that are learned, one for each of a number of things: words, characters, days of the week."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..util.checks import checked_array, float_dtype, integers, positive_int
from .module import Module

__all__ = ["Embedding"]


class Embedding(Module):
    """A table of vectors, looked up by index: ``x = weight[indices]``.

    >>> import numpy as np
    >>> from fastrnn import Embedding
    >>> embedding = Embedding(10, 3, rng=0)
    >>> x, tape = embedding.forward(np.array([[1, 7], [1, 0]]))
    >>> x.shape
    (2, 2, 3)
    >>> embedding.backward(tape, np.ones_like(x))
    >>> embedding.grads["weight"][:2].tolist()  # index 1 came twice
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]

    num_embeddings (N), embedding_dim (E): how many vectors, and how long each is.
    dtype: float32 or float64, of ``weight`` (N, E) and of every array that goes in or out.
    rng: None, an int or a numpy Generator, for the initial values: torch's, normal with mean 0 and variance 1.

    The first layer of a network can do without: integers given to a recurrent layer are indices of one-hot inputs, and
    the columns of its weight_ih the vectors that are learned.

    Raises TypeError or ValueError for sizes that are not positive integers and for another dtype.
    Source: Y. Bengio et al., A neural probabilistic language model, JMLR 3 (2003).
    """

    _fixed = Module._fixed | {"num_embeddings", "embedding_dim"}

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "float32", rng: Any = None) -> None:
        self.num_embeddings = positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = positive_int("embedding_dim", embedding_dim)
        shape = (self.num_embeddings, self.embedding_dim)
        super().__init__({"weight": shape}, float_dtype(dtype))
        self.params["weight"][...] = np.random.default_rng(rng).standard_normal(shape)

    def __call__(self, indices: Any) -> np.ndarray:
        """x (..., E) for integers (...) in [0, N).  Raises as `forward` does."""
        return self.forward(indices)[0]

    def forward(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """x (..., E) for integers (...) in [0, N), and the tape that `backward` needs: the indices, copied.

        Raises TypeError for what are no integers, ValueError for an index out of range.
        """
        tape = self._checked("indices", indices)
        return np.take(self.params["weight"], tape, axis=0), tape

    def backward(self, tape: np.ndarray, dx: np.ndarray) -> None:
        """Add dx (..., E), the gradient of the loss by x, into ``grads``: where an index came again, all of its rows.

            dweight[n] += sum of dx over the places where indices = n, in their order

        Raises TypeError for another dtype, ValueError when dx has not the shape of x; ``grads`` is unchanged then.
        """
        indices = self._checked("the tape", tape)
        dx = checked_array("dx", dx, (*indices.shape, self.embedding_dim), self.dtype)
        if indices.size:
            flat = indices.reshape(-1)
            order = np.argsort(flat, kind="stable")
            used, first = np.unique(flat[order], return_index=True)
            self.grads["weight"][used] += np.add.reduceat(dx.reshape(-1, self.embedding_dim)[order], first, axis=0)

    def _checked(self, name: str, indices: Any) -> np.ndarray:
        """A copy of the indices, int64."""
        array = integers(name, indices)
        if array.size and not (array.min() >= 0 and array.max() < self.num_embeddings):
            raise ValueError(f"expected {name} from 0 to {self.num_embeddings - 1}, got {array.min()} to {array.max()}")
        return array.astype(np.int64)

    def __repr__(self) -> str:
        return self._shown(self.num_embeddings, self.embedding_dim)
