"""Arrays of any dtype, shape and strides in the place of each array of a call: refused, or taken for what they are.

The campaigns of stress/ make hostile values by hand; here hypothesis makes them, and shrinks what it finds.
"""

import fastrnn
import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402

LAYER = fastrnn.LSTM(3, 5, num_layers=2, rng=0)
X = np.random.default_rng(0).standard_normal((4, 2, 3), dtype=np.float32)
Y, (H, C), TAPE = LAYER.forward(X)
STREAM = LAYER.stream(2)
CALLS = {
    "x": lambda array: LAYER(array),
    "x in training": lambda array: LAYER.forward(array),
    "h": lambda array: LAYER(X, (array, C)),
    "c": lambda array: LAYER(X, (H, array)),
    "lengths": lambda array: LAYER(X, lengths=array),
    "reset": lambda array: LAYER(X, reset=array),
    "dy": lambda array: LAYER.backward(TAPE, array),
    "dstate": lambda array: LAYER.backward(TAPE, Y, (array, C)),
    "x of a step": lambda array: STREAM.step(array),
    "x of a run": lambda array: STREAM.run(array),
    "active": lambda array: STREAM.run(X, active=array),
    "targets": lambda array: fastrnn.softmax_cross_entropy(X, array),
    "logits": lambda array: fastrnn.softmax_cross_entropy(array, np.zeros((4, 2), int)),
}
DTYPES = st.one_of(st.just(np.dtype("f4")), hnp.scalar_dtypes(), hnp.array_dtypes(max_size=2))
SHAPES = st.one_of(
    st.sampled_from([(4, 2, 3), (2, 3), (4, 3), (4, 2), (2,), (4, 2, 5)]),
    hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4),
)


@st.composite
def arrays(draw):
    """Of any dtype and shape, and a view of them that may step backwards, leave out, swap and repeat."""
    array = draw(hnp.arrays(draw(DTYPES), draw(SHAPES)))
    if array.ndim and draw(st.booleans()):
        array = array[draw(hnp.basic_indices(array.shape, allow_newaxis=True))]
    if isinstance(array, np.ndarray) and draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    if isinstance(array, np.ndarray) and array.ndim and draw(st.booleans()):
        array = np.broadcast_to(array[:1], array.shape)
    return array


@pytest.mark.parametrize("name", CALLS)
@hypothesis.settings(derandomize=True, max_examples=40, deadline=None, database=None)
@hypothesis.given(array=arrays())
def test_any_array_is_refused_or_taken_and_changes_nothing(name, array):
    given = np.array(array)
    before = [LAYER.flat_params.tobytes(), *(state.tobytes() for state in STREAM.state)]
    try:
        with np.errstate(all="ignore"):
            CALLS[name](array)
        refused = False
    except (TypeError, ValueError):
        refused = True
    LAYER.zero_grad()
    if refused:
        assert before == [LAYER.flat_params.tobytes(), *(state.tobytes() for state in STREAM.state)]
    assert np.array(array).tobytes() == given.tobytes()
    assert LAYER.flat_params.tobytes() == before[0]
