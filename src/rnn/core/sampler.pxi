# A stream of one row of indices with a softmax head behind it: it predicts, and writes. Included by _core.pyx.

cdef class TokenSampler:
    """p (K,) = softmax(c + V h) behind a stream of one row in float32, whose inputs are indices below K.

    `feed` reads indices; `probabilities` tells what may come next; `write` draws it and reads that, again and again.
    """

    cdef readonly Stream stream
    cdef int64_t K
    cdef object panels, bias, logits, weights  # panels of V; c; scratch (K,), float32 and float64
    cdef float *panels_at
    cdef float *bias_at
    cdef float *o
    cdef double *w

    def __init__(self, Stream stream, const float[:, ::1] weight, const float[::1] bias):
        K, panels = weight.shape[0], new_array((stream.kernels.f32.affine_size(weight.shape[0], stream.P),), np.float32)
        stream.kernels.f32.pack_affine(K, stream.P, &weight[0, 0], <float*>data(panels))
        self.set_up(stream, K, panels, np.array(bias))

    cdef int set_up(self, Stream stream, int64_t K, panels, bias) except -1:
        self.stream, self.K, self.panels, self.bias = stream, K, panels, bias
        self.logits, self.weights = np.empty(K, np.float32), np.empty(K, np.float64)
        self.panels_at, self.bias_at = <float*>data(panels), <float*>data(bias)
        self.o, self.w = <float*>data(self.logits), <double*>data(self.weights)
        return 0

    def copy(self):
        """Another sampler with the same weights, and from here on a state of its own."""
        cdef TokenSampler other = TokenSampler.__new__(TokenSampler)
        other.set_up(self.stream.copy(), self.K, self.panels, self.bias)
        return other

    def feed(self, const int64_t[::1] ids, out):
        """Read ids (T,) in [0, K); out, float32 (T, K) or None: the probabilities of what comes after each."""
        cdef bint left = False
        self.stream.claim()
        try:
            if ids.shape[0]:
                left = self.feed_or_restore(&ids[0], ids.shape[0], <float*>data(out))
        finally:
            self.stream.release()
        finished(LEFT if left else 0, "a stream")

    cdef bint feed_or_restore(self, const int64_t* ids, int64_t T, float* p) noexcept:
        """Returns whether the call was left; the state is then as it was before."""
        cdef Stream s = self.stream
        cdef Section section
        cdef int64_t t
        section.begin()
        with nogil:
            s.note_state()
            for t in range(T):
                if section.left_after(s.step_work + 2000):
                    s.restore_state()
                    break
                read_index(s, &ids[t], &section)
                if p != NULL:
                    self.softmax(s, 1)
                    self.put(p + t * self.K)
        return section.was_left()

    def write(self, const double[::1] uniform, double temperature):
        """The indices (T,) drawn from softmax(logits / temperature) by uniform numbers (T,) in [0, 1), each of which is
        then read; if the temperature is zero, the likeliest ones, whatever `uniform` holds."""
        cdef bint left = False
        cdef int64_t[::1] ids = np.empty(uniform.shape[0], np.int64)
        self.stream.claim()
        try:
            if ids.shape[0]:
                left = self.write_or_restore(&uniform[0], ids.shape[0], temperature, &ids[0])
        finally:
            self.stream.release()
        finished(LEFT if left else 0, "a stream")
        return ids.base

    cdef bint write_or_restore(self, const double* uniform, int64_t T, double temperature, int64_t* ids) noexcept:
        """Returns whether the call was left; the state is then as it was before."""
        cdef Stream s = self.stream
        cdef Section section
        cdef int64_t t
        section.begin()
        with nogil:
            s.note_state()
            for t in range(T):
                if section.left_after(s.step_work + self.K * s.P + 2000):
                    s.restore_state()
                    break
                self.softmax(s, temperature)
                ids[t] = self.draw(uniform[t]) if temperature > 0 else self.likeliest()
                read_index(s, &ids[t], &section)
        return section.was_left()

    cdef void softmax(self, Stream s, double temperature) noexcept nogil:
        """o := c + V h and, unless the temperature is zero, w := exp((o - max o) / temperature)"""
        cdef int64_t k
        cdef float highest
        s.kernels.f32.affine(self.K, s.P, <float*>s.h_at + (s.layers - 1) * s.P, self.panels_at, self.bias_at, self.o)
        if temperature == 0:
            return
        highest = self.o[self.likeliest()]
        for k in range(self.K):
            self.w[k] = <double>(self.o[k] - highest) / temperature
        s.kernels.f64.exp(self.K, self.w, self.w)

    cdef void put(self, float* p) noexcept nogil:
        """p (K,) := w, divided by its sum"""
        cdef double sum = 0
        cdef int64_t k
        for k in range(self.K):
            sum += self.w[k]
        for k in range(self.K):
            p[k] = <float>(self.w[k] / sum)

    cdef int64_t likeliest(self) noexcept nogil:
        cdef int64_t k, best = 0
        cdef float highest = self.o[0]
        for k in range(1, self.K):
            if self.o[k] > highest:
                best, highest = k, self.o[k]
        return best

    cdef int64_t draw(self, double uniform) noexcept nogil:
        """The first index at which the cumulated sum of w exceeds that part of the whole sum; w becomes these sums."""
        cdef double sum = 0
        cdef int64_t k
        for k in range(self.K):
            sum += self.w[k]
            self.w[k] = sum
        for k in range(self.K):
            if self.w[k] > uniform * sum:
                return k
        return self.K - 1


cdef void read_index(Stream s, const int64_t* index, Section* section) noexcept nogil:
    """Take one step of a stream of one row, whose y is not wanted."""
    cdef StreamCall call
    memset(&call, 0, sizeof(call))
    call.T, call.ids = 1, index
    s.advance_state(&call, section, NULL)
