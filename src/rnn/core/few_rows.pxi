# What comes after a recurrent layer, on arrays of the usual kinds: an output layer on few rows, softmax and the losses,
# without an object made in Python but the result. Each returns None for all other arguments, wrong ones and unusual
# ones alike, for the caller to look at. Included by _core.pyx.

cdef enum:
    # Rows of an output layer whose weights are read as they lie, any or those of few multiply-adds; more are made by BLAS
    FEW_ROWS = 32
    SOME_ROWS = 128
    FEW_MULTIPLY_ADDS = 1 << 20


cdef bint is_plain(array) noexcept:
    """Whether it is an array of float32 or float64 in C order."""
    return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(array) in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64)
            and cnp.PyArray_ISCARRAY_RO(array) and cnp.PyArray_NDIM(array) > 0)


cdef cnp.ndarray empty_as(array, int64_t width):
    """A new array like this one but for its last axis."""
    cdef cnp.npy_intp shape[MOST_AXES]
    cdef int axis, rank = cnp.PyArray_NDIM(array)
    for axis in range(rank - 1):
        shape[axis] = cnp.PyArray_DIM(array, axis)
    shape[rank - 1] = width
    return cnp.PyArray_EMPTY(rank, shape, cnp.PyArray_TYPE(array), 0)


def few_rows_affine(h, cnp.ndarray weight not None, cnp.ndarray bias):
    """o (..., K) = bias + h (..., I) . weight^T for a few rows."""
    cdef int64_t I = cnp.PyArray_DIM(weight, 1), K = cnp.PyArray_DIM(weight, 0), rows
    cdef void *x
    cdef void *w
    cdef void *b
    cdef void *y
    if not is_plain(h) or cnp.PyArray_TYPE(h) != cnp.PyArray_TYPE(weight) or cnp.PyArray_NDIM(h) > MOST_AXES:
        return None
    rows = cnp.PyArray_SIZE(h) // I
    if cnp.PyArray_DIM(h, cnp.PyArray_NDIM(h) - 1) != I or not 0 < rows <= SOME_ROWS:
        return None
    if rows * I > (WORTH if rows <= FEW_ROWS else FEW_MULTIPLY_ADDS) // K:
        return None
    o = empty_as(h, K)
    cdef bint is_double = cnp.PyArray_TYPE(h) == cnp.NPY_FLOAT64
    if rows * I < HELD_WORK // K:
        affine_of(is_double, rows, K, I, data(h), data(weight), data(bias), data(o))
    else:
        x, w, b, y = data(h), data(weight), data(bias), data(o)
        with nogil:
            affine_of(is_double, rows, K, I, x, w, b, y)
    return o


cdef void affine_of(
        bint is_double, int64_t rows, int64_t K, int64_t I, void* x, void* w, void* bias, void* o) noexcept nogil:
    cdef Section section
    section.begin()
    if is_double:
        kernels.f64.affine_rows(rows, K, I, <double*>x, <double*>w, <double*>bias, <double*>o)
    else:
        kernels.f32.affine_rows(rows, K, I, <float*>x, <float*>w, <float*>bias, <float*>o)


def plain_softmax(logits):
    """Softmax along the last axis."""
    cdef int64_t K, rows
    cdef Section section
    if not is_plain(logits) or cnp.PyArray_NDIM(logits) > MOST_AXES or cnp.PyArray_SIZE(logits) == 0:
        return None
    K = cnp.PyArray_DIM(logits, cnp.PyArray_NDIM(logits) - 1)
    rows = cnp.PyArray_SIZE(logits) // K
    p = empty_as(logits, K)
    cdef void *x = data(logits)
    cdef void *y = data(p)
    cdef bint is_double = cnp.PyArray_TYPE(logits) == cnp.NPY_FLOAT64
    with nogil:
        section.begin()
        if is_double:
            kernels.f64.softmax(rows, K, <double*>x, <double*>y)
        else:
            kernels.f32.softmax(rows, K, <float*>x, <float*>y)
    return p


def plain_cross_entropy(logits, targets):
    """(loss, dlogits) of softmax with cross-entropy, where all targets count and the work is small."""
    cdef int64_t K, rows, i
    cdef const int64_t* target
    cdef double total
    cdef Section section
    if not is_plain(logits) or not cnp.PyArray_CheckExact(targets) or cnp.PyArray_NDIM(logits) > MOST_AXES:
        return None
    rows = cnp.PyArray_SIZE(targets)
    K = cnp.PyArray_DIM(logits, cnp.PyArray_NDIM(logits) - 1)
    if (cnp.PyArray_TYPE(targets) != cnp.NPY_INT64 or not cnp.PyArray_ISCARRAY_RO(targets) or rows == 0
            or cnp.PyArray_NDIM(targets) != cnp.PyArray_NDIM(logits) - 1 or K == 0 or rows * K > LEAST_POOLED // 8):
        return None
    for i in range(cnp.PyArray_NDIM(targets)):
        if cnp.PyArray_DIM(targets, i) != cnp.PyArray_DIM(logits, i):
            return None
    target = <const int64_t*>data(targets)
    for i in range(rows):
        if not 0 <= target[i] < K:
            return None
    dlogits = empty_as(logits, K)
    section.begin()
    if cnp.PyArray_TYPE(logits) == cnp.NPY_FLOAT64:
        total = kernels.f64.softmax_cross_entropy(
            rows, K, <double*>data(logits), target, 1.0 / rows, <double*>data(dlogits))
    else:
        total = kernels.f32.softmax_cross_entropy(
            rows, K, <float*>data(logits), target, <float>(1.0 / rows), <float*>data(dlogits))
    return total / rows, dlogits


def plain_mse(y, targets):
    """(loss, dy) of the mean squared error, where all elements count and the work is small."""
    cdef int64_t n
    cdef double total
    cdef int axis
    cdef Section section
    if not is_plain(y) or not is_plain(targets) or cnp.PyArray_TYPE(y) != cnp.PyArray_TYPE(targets):
        return None
    n = cnp.PyArray_SIZE(y)
    if n == 0 or n > LEAST_POOLED // 8 or cnp.PyArray_NDIM(y) != cnp.PyArray_NDIM(targets) or cnp.PyArray_NDIM(y) > MOST_AXES:
        return None
    for axis in range(cnp.PyArray_NDIM(y)):
        if cnp.PyArray_DIM(y, axis) != cnp.PyArray_DIM(targets, axis):
            return None
    dy = empty_as(y, cnp.PyArray_DIM(y, cnp.PyArray_NDIM(y) - 1))
    section.begin()
    if cnp.PyArray_TYPE(y) == cnp.NPY_FLOAT64:
        total = kernels.f64.squared_error(n, 2.0 / n, <double*>data(y), <double*>data(targets), <double*>data(dy))
    else:
        total = kernels.f32.squared_error(n, <float>(2.0 / n), <float*>data(y), <float*>data(targets), <float*>data(dy))
    return total / n, dy
