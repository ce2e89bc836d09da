# How many threads work is worth, learnt from its calls. Included by _core.pyx.

cdef enum:
    NOTED = 5        # times that are noted of each way
    TRIED = 2        # how often each way is tried at first
    AGAIN = 64       # calls after which another way is tried once more
    MOST_WAYS = 18   # 1, 2, 4, ... up to 65,536 threads, and all that there are
    # Multiply-adds a thread from which on more threads are sure to gain, so that fewer are not tried: for tasks side by
    # side some 2 ms; for teams, which meet at each step, some 10 ms if the steps are worth SHORT threads at most
    SURE = 1 << 27
    SURE_OF_TEAMS = 1 << 30
    SHORT = 16


cdef class Ways:
    """How long work of one kind takes on 1, 2, 4, ... threads: learnt from its calls, for each to be made in the way
    that is the fastest at present. That depends on the machine, on what else runs there, and on caches, so that no
    formula tells; and it never affects what is computed.

    Each way is tried twice. From then on the one with the least median counts, and every 64th call tries another.
    """

    cdef double times[MOST_WAYS][NOTED]  # the last ones, nanoseconds a unit of work
    cdef int64_t noted[MOST_WAYS]
    cdef int64_t calls
    cdef int next_other

    cpdef int choose(self, int count, int first=0) noexcept:
        """Which of the ways from the first to the one before `count` to take now."""
        cdef int way, best = first
        cdef int64_t least = TRIED
        if count - first < 2:
            return first
        self.calls += 1
        for way in range(count - 1, first - 1, -1):
            if self.noted[way] < least:
                best, least = way, self.noted[way]
        if least < TRIED:
            return best
        for way in range(first + 1, count):
            if self.median(way) < self.median(best):
                best = way
        if self.calls % AGAIN == 0:
            self.next_other = (self.next_other + 1) % (count - first)
            way = first + self.next_other
            if way == best:
                way = best + 1 if best + 1 < count else first
            # a way that is far from being the best is tried less often
            if self.median(way) < 2 * self.median(best) or self.calls % (16 * AGAIN) == 0:
                return way
        return best

    cdef double median(self, int way) noexcept:
        cdef double ordered[NOTED]
        cdef int n = <int>min(NOTED, self.noted[way]), i, at
        for i in range(n):
            at = i
            while at and ordered[at - 1] > self.times[way][i]:
                ordered[at] = ordered[at - 1]
                at -= 1
            ordered[at] = self.times[way][i]
        return ordered[n // 2]

    cpdef void note(self, int way, double time) noexcept:
        self.times[way][self.noted[way] % NOTED] = time
        self.noted[way] += 1

    @property
    def medians(self):
        """For tests and for the curious: of each way that was tried."""
        return [self.median(way) for way in range(MOST_WAYS) if self.noted[way]]


known_ways = {}


cdef bint is_decided = False  # while a call is made whose number of threads somebody else learns


cdef Ways ways_of(kind):
    """What is known of a kind of work, a hashable object."""
    cdef object found = known_ways.get(kind)
    if found is None:
        if len(known_ways) >= 4096:  # batches of ever changing sizes
            known_ways.clear()
        found = known_ways[kind] = Ways()
    return found


cpdef int64_t magnitude(int64_t work) noexcept:
    """Sizes of work that count as one, within a quarter: the exponent and the two bits behind the first."""
    cdef int64_t bits = 0
    while work >= 8:
        work >>= 1
        bits += 1
    return bits * 8 + work


cdef int count_ways(int64_t most) noexcept:
    """How many ways there are: 1, 2, 4, ... and `most` threads."""
    cdef int count = 1
    while (1 << count) < most:
        count += 1
    return count + 1 if most > 1 else 1


cpdef int first_way(int64_t work, int64_t sure, int count) noexcept:
    """The first of so many ways that is worth trying: that with the fewest threads that each have less than is sure to
    gain from more."""
    cdef int way = 0
    while way + 1 < count and work >> way > sure:
        way += 1
    return way


cdef int64_t threads_of(int way, int64_t most) noexcept:
    return min(most, <int64_t>1 << way)
