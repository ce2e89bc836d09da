# Work on several threads, and how it is left early. Included by _core.pyx.
#
#   run      several tasks side by side: shards of a batch, directions, layers                  Job
#   share    several threads on one layer pass, each with some of the units of every step     Team (runtime/team.hpp)
#   Pool     the threads that serve as workers
#
# How many threads work is given is learnt, see ways.pxi.
#
# Python delivers a signal between two of its own instructions, in the main thread, and the error of a handler is raised
# there: perhaps between the taking of a lock and the `with` that owns it, or when work has been given to other threads
# and none waits for them yet. So all that must not be torn apart is here, where there are no instructions of Python:
# work is given, done and waited for in one piece. A task that runs Python code can be interrupted; then the other tasks
# are told to leave, and the error is raised when they have left. The loops over steps ask at each step whether to leave
# (kernels/runtime/section.hpp).

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    void PyErr_SetString(object, const char*) noexcept
    void* PyErr_Occurred() noexcept
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef extern from "runtime/section.hpp" namespace "fastrnn" nogil:
    cppclass TaskState "fastrnn::Job":
        TaskState() noexcept
        void begin()
        void lead()
        cbool cancel()
        cbool is_cancelled()
        int64_t take(int64_t)
        cbool enter()
        void leave()
        int64_t come()
        void close()
        cbool all_left(int64_t)
        void end()
    TaskState* current_job "fastrnn::Job::current"()
    void set_current_job "fastrnn::Job::set_current"(TaskState*)
    cppclass Tickets:
        Tickets() noexcept
        void give(int64_t)
        void take()
    cppclass Section:
        Section() noexcept
        void begin()
        cbool left_after(int64_t)
        cbool was_left()
    cbool (*hear "fastrnn::Section::hear_signals")() noexcept nogil

cdef extern from * nogil:
    """
    static bool has_come(const fastrnn::Job* job, int64_t n, int64_t patience) {
      return fastrnn::comes_to(n, patience, [=] { return job->come(); });
    }
    static bool has_come(const fastrnn::Team* team, int64_t n, int64_t patience) {
      const auto come = [=] { return fastrnn::joined(__atomic_load_n(&team->call, __ATOMIC_RELAXED)); };
      return fastrnn::comes_to(n, patience, come);
    }
    static bool has_come(const fastrnn::PendingCount* tally, int64_t n, int64_t patience) {
      return fastrnn::comes_to(n, patience, [=] { return __atomic_load_n(&tally->n, __ATOMIC_ACQUIRE); });
    }
    """
    cbool has_come(TaskState*, int64_t, int64_t)
    cbool has_come(TeamState*, int64_t, int64_t)
    cbool has_come(PendingCount*, int64_t, int64_t)

cdef enum:
    NO_MEMORY = -1  # what a run returns that ended early
    LEFT = -2
    PAUSE = 40000000        # nanoseconds that a master waits for workers before it hears signals
    GATHERING = 1000000000  # nanoseconds that it waits for all of them to come, if they are to begin together
    # Handing a task to another thread costs some 10 us, or 50 if that thread sleeps, and each shard packs the weights
    # anew: work of fewer multiply-adds than this is not cut
    WORTH = 1 << 23

WORTH_CUTTING = WORTH


class Cancelled(BaseException):
    """Raised in a task that was left because another one of the same call failed; the caller sees the other's error."""


cdef int finished(int code, str purpose) except -1:
    """Raise the error of a run that ended early, by the code that it returned."""
    if code == NO_MEMORY:
        raise MemoryError(f"no memory for {purpose}")
    if code == LEFT:
        if PyErr_Occurred() != NULL:  # by the handler of a signal
            return -1
        raise Cancelled
    return 0


# ---------------------------------------------------------------- signals

cdef unsigned long main_thread = threading.main_thread().ident
cdef int64_t forks = 0  # how many lie between this process and the one that has imported the module


cdef cbool hear_signals() noexcept nogil:
    """Whether a handler has raised an error. Calls that handlers make are no part of the job that is under way."""
    if PyThread_get_thread_ident() != main_thread:
        return False
    cdef TaskState* job = current_job()
    cdef cbool raised
    set_current_job(NULL)
    with gil:
        raised = handlers_raise()
    set_current_job(job)
    return raised


cdef bint handlers_raise() noexcept:
    cdef int64_t before = forks
    if PyErr_CheckSignals() != 0:
        return True
    if forks != before:
        PyErr_SetString(RuntimeError, "a call cannot go on in a child that its signal handler has forked")
    return forks != before

hear = hear_signals


cdef int raise_signals() except -1:
    return -1 if hear_signals() else 0


# ---------------------------------------------------------------- the pool

cdef int64_t thread_count = 1  # that a call may use, the caller's among them
cdef bint gathers = False  # see `gather_workers`
cdef Pool pool = None
cdef object pool_lock = threading.Lock()


def num_threads():
    """How many threads a call may use."""
    return thread_count


def set_num_threads(int64_t n):
    """Use n threads from now on. Returns the pool that there was, whose threads end when they have done what they were
    given; or None."""
    global thread_count, pool
    pool_lock.acquire()
    thread_count, old, pool = n, pool, None
    pool_lock.release()
    if old is not None:
        old.close()
    return old


def gather_workers(bint on):
    """For tests: whether every job and every team, however small, waits until all of its workers have come."""
    global gathers
    gathers = on


def after_fork():
    """In a child, which has none of its parent's threads"""
    global pool, pool_lock, main_thread, forks
    pool, pool_lock, main_thread = None, threading.Lock(), PyThread_get_thread_ident()
    forks += 1


def submit(work, int64_t count):
    """Have so many threads of the pool call `work` as soon as they are free."""
    given, new = [work] * count, None
    try:
        while not handed_over(given, new):
            new = Pool(thread_count - 1)
    finally:
        if new is not None and new is not pool:  # another thread was faster
            new.close()


cdef bint handed_over(list given, Pool new) except -1:
    """Give the work to the pool, if there is one, or else to the new one; returns whether there was either. No object
    is
    made while the lock is held: the garbage collector might run any code then, also code that waits for the lock."""
    global pool
    pool_lock.acquire()
    try:
        if pool is None:
            pool = new
        if pool is not None:
            pool.give(given)
        return pool is not None
    finally:
        pool_lock.release()


cdef class Pool:
    """Threads that call what the pool is given: each takes the next piece of work."""

    cdef Tickets tickets  # as many as there are things given
    cdef list given
    cdef readonly int64_t size
    cdef PendingCount ready, warm, ended

    def __init__(self, int64_t size):
        """Start so many threads, or as many as the system has."""
        self.given = []
        try:
            while self.size < size:
                _thread.start_new_thread(self.serve, ())
                self.size += 1
        except (MemoryError, RuntimeError):
            pass
        except BaseException:
            self.close()
            raise
        finally:
            add(&self.ready, self.size + 1)
            self.warm_up()

    cdef int give(self, list given) except -1:
        """Have each of these called by one of the threads."""
        if self.size:
            self.given.extend(given)
            self.tickets.give(len(given))
        return 0

    def close(self):
        """Let the threads end when they have done what they were given."""
        self.give([None] * self.size)

    def join(self):
        """Return when the threads have ended."""
        cdef bint ended = False
        while not ended:
            with nogil:
                ended = has_come(&self.ended, self.size, PAUSE)
            if not ended:
                raise_signals()

    @property
    def alive(self):
        """How many threads have not ended."""
        return self.size - self.ended.n

    def serve(self):
        """What each thread does."""
        self.warm_up()
        work = self.take()
        while work is not None:
            call(work)
            work = None  # so that it can be freed while the thread waits
            work = self.take()
        add(&self.ended, 1)

    cdef object take(self):
        with nogil:
            self.tickets.take()
        return self.given.pop(0)

    cdef void warm_up(self) noexcept:
        """Called by all threads and the caller together, so that OpenBLAS has a warm buffer for each of them. It gives
        a
        product the first buffer that is free: only products at the same time warm different ones."""
        cdef int64_t all_of_them
        with nogil:
            all_of_them = wait_for(&self.ready, 1)
            add(&self.warm, 1)
            wait_for(&self.warm, all_of_them)
        try:
            warm_blas()
        finally:
            with nogil:
                add(&self.warm, 1)
                wait_for(&self.warm, 2 * all_of_them)


cdef void call(work) noexcept:
    work()


# ---------------------------------------------------------------- tasks side by side

def run(list tasks, kind=None, int64_t work=0):
    """Run all tasks, the caller among the threads, and return their results. An error is raised when all have ended:
    the first that there was, or that of the handler of a signal; tasks that had not begun by then are left out.

    kind, work: of what kind they are, and of how many multiply-adds, if it is to be learnt how many threads they are
    worth."""
    cdef int64_t n = min(thread_count, len(tasks)), begun
    cdef Ways ways
    cdef int way
    if n < 2:
        return [task() for task in tasks]
    if kind is None or gathers or is_decided or pool is None:  # a call that makes the pool takes longer
        return run_on(tasks, n)
    ways = ways_of((kind, n, len(tasks), magnitude(work)))
    way = ways.choose(count_ways(n), first_way(work, SURE, count_ways(n)))
    begun = nanoseconds()
    results = run_on(tasks, threads_of(way, n))
    ways.note(way, <double>(nanoseconds() - begun) / work)
    return results


cdef list run_on(list tasks, int64_t n):
    """Run the tasks on n threads."""
    if n < 2:
        return [task() for task in tasks]
    cdef Job job = Job(tasks)
    submit(job.serve, n - 1)
    return job.lead(n - 1)


def in_turn(list tasks):
    """Call one after the other: one task that consists of several."""
    for task in tasks:
        task()


def copy_all(list pairs):
    """to[...] = array for each pair (to, array); no interrupt comes between."""
    for to, array in pairs:
        to[...] = array


cdef class Job:
    """The tasks of one call: the master, which is the caller, and its workers each take the next one."""

    cdef TaskState state
    cdef list tasks, results
    cdef object error, failure  # of the master; the first one of a worker
    cdef int64_t forks          # when it was made

    def __init__(self, list tasks):
        self.tasks, self.results, self.forks = tasks, [None] * len(tasks), forks
        self.state.begin()

    cdef int work(self) except -1:
        cdef int64_t n = len(self.tasks), i = self.state.take(n)
        while i >= 0:
            self.results[i] = self.tasks[i]()
            i = self.state.take(n)
        return 0

    def serve(self):
        """What a worker does."""
        if not self.state.enter():
            return
        try:
            self.work()
        except BaseException as error:
            if self.state.cancel():
                self.failure = error
        finally:
            self.state.leave()

    cdef list lead(self, int64_t workers):
        """What the master does: it takes its part, and then waits for the workers."""
        self.state.lead()
        try:
            if gathers:
                with nogil:
                    has_come(&self.state, workers, GATHERING)
            self.work()
        except BaseException as error:
            self.state.cancel()
            self.error = error
        finally:
            self.state.close()
            self.wait()
            self.state.end()
        results, self.tasks, self.results = self.results, [], []  # a worker that comes late still holds the job
        error, failure, self.error, self.failure = self.error, self.failure, None, None
        if failure is not None and (error is None or isinstance(error, Cancelled)):
            error = failure
        if error is not None:
            raise error
        if self.state.is_cancelled():  # by the job that this one is part of
            raise Cancelled
        return results

    cdef int wait(self) except -1:
        """Wait until all workers have left; in a child that was forked meanwhile, there are none."""
        cdef bint all_left = False
        while not all_left and self.forks == forks:
            with nogil:
                all_left = self.state.all_left(PAUSE)
            if not all_left and not self.state.is_cancelled():
                try:
                    raise_signals()
                except BaseException as error:
                    self.state.cancel()
                    self.error = error
        return 0


# ---------------------------------------------------------------- several threads on one layer pass

cdef class Team:
    """The threads that share every step of one layer pass, or of a stream. Workers call `serve`; the master, whose pass
    it is, shuts the team down. Up to `places` workers may join at any time; the master never waits for one that has not
    joined."""

    cdef TeamState state

    def __cinit__(self, int places):
        memset(&self.state, 0, sizeof(self.state))
        self.state.places = min(places, 254)

    def serve(self):
        with nogil:
            serve_in_section(&self.state)


cdef void serve_in_section(TeamState* team) noexcept nogil:
    cdef Section section
    section.begin()
    serve(team)


cdef class Recruiting:
    """A team for one pass, or none; how many threads passes of its kind are worth is learnt, see `Ways`."""

    cdef readonly Team team
    cdef Ways ways
    cdef int way
    cdef int64_t begun, work

    def __init__(self, int64_t most, int64_t work, kind):
        """A team of up to `most` threads, the caller's among them, for a pass of so many multiply-adds."""
        cdef int64_t n = min(min(thread_count, most), 254)
        self.work = work
        if n < 2 or not gathers and (work < WORTH or teams_back_off()):
            return
        if not gathers and not is_decided and pool is not None:
            self.ways = ways_of((kind, n, magnitude(work)))
            first = first_way(work, SURE_OF_TEAMS if most <= SHORT else SURE, count_ways(n))
            self.way = self.ways.choose(count_ways(n), first)
            self.begun = nanoseconds()
            n = threads_of(self.way, n)
        if n < 2:
            return
        self.team = Team(n - 1)
        submit(self.team.serve, n - 1)
        if gathers:
            with nogil:
                has_come(&self.team.state, n - 1, GATHERING)

    cdef int end(self) except -1:
        """To be called when the pass is done."""
        if self.team is not None:
            shut_down(&self.team.state)  # a worker that comes later leaves at once
        if self.ways is not None:
            self.ways.note(self.way, <double>(nanoseconds() - self.begun) / self.work)
        return 0


cdef TeamState* state_of(Team team) noexcept:
    return <TeamState*>NULL if team is None else &team.state


def share(task, int64_t most, int64_t work, kind=None):
    """task(team), a pass of so many multiply-adds that up to `most` threads may share. kind: what else its time may
    depend on, any hashable object."""
    cdef Recruiting of = Recruiting(most, work, (kind, "share"))
    try:
        return task(of.team)
    finally:
        of.end()
