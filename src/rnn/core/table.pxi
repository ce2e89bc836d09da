# What the kernels offer, as kernels/table.hpp and kernels/sequence.hpp declare it. Included by _core.pyx.

cdef extern from "runtime/assert.hpp" nogil:
    void require "FASTRNN_ASSERT"(bint) noexcept  # what these loops rely on; nothing in a release build

cdef extern from "table.hpp" namespace "fastrnn" nogil:
    cppclass Rows[T]:
        T* base
        const int64_t* offset
        int64_t step
        T* at(long, long)  # row (s, b)
    cppclass Zoneout[T]:
        T p
        Rows[uint8_t] keeps
    struct Activation:
        int kind
        double alpha, beta
    cppclass Weights[T]:
        const T *ih
        const T *hh
        const T *b_ih
        const T *b_hh
        const T *hr
        const T *peephole
    enum Storage "fastrnn::Storage":
        STORED_FULL "fastrnn::kFull"
        STORED_BFLOAT16 "fastrnn::kBfloat16"
        STORED_INT8 "fastrnn::kInt8"
    long fixed_size(long)
    cppclass Norms[T]:
        T *gain_ih
        T *gain_hh
        T *gain_c
        T *bias_c
    long NORM_STATISTICS "fastrnn::kNormStatistics"
    cppclass Sequence[T]:
        long steps "T_"
        long B, I, H, P
        const int64_t* start
        Rows[T] x
        Rows[int64_t] ids
        const T* table
        const T* input_projection
        long projection_from
        const T* h0
        const T* c0
        Rows[uint8_t] reset
        const T* zeros
        const T* h_mask
        T* h_masked
        Zoneout[T] zoneout_h, zoneout_c
        T* c_saved
        T* dh_zoneout
        Weights[T] weights
        Norms[T] norms
        Activation activation[3]
        T clip, grad_clip
        cbool coupled
        Rows[T] y
        T* c
        cbool c_in_place
        T* saved
        long saved_from
        T* scratch
        long saved_width
        Rows[T] dy
        Rows[T] dx
        T* dh
        T* dc
        T* dgates
        long dgates_from, dgates_width
        T* dprojected
        T* dpeephole
        Norms[T] dnorms
        T* sums
        cbool prepacked
        WorkShare* share
        Storage storage
        cbool has_vnni, reverse_panels
        T *x_fixed
        T *h_fixed
        cbool can_share()
        long first(long)
        long active(long)
        T* saved_at(long, long)
        T* c_at(long, long)
    struct TeamState "fastrnn::Team":
        int64_t call
        int places
    struct WorkShare:
        int index
    void serve(TeamState*)
    void shut_down(TeamState*)
    cbool teams_back_off "fastrnn::Backoff::now"()
    void take(const WorkShare*, long, long*, long*)
    void run_shared[Job](TeamState*, void (*)(const Job*, WorkShare*) noexcept nogil, const Job&)
    void run_step[T](TeamState*, const Sequence[T]&, void (*)(const Sequence[T]&, long) noexcept nogil, long)
    cbool take_flag(int*)
    void drop_flag(int*)
    struct Progress:
        int64_t steps
    void publish(Progress*, int64_t)
    void wait_for(const Progress*, int64_t)
    struct PendingCount:
        int64_t n
    void add(PendingCount*, int64_t)
    int64_t wait_for(const PendingCount*, int64_t)
    cppclass Arena[T]:
        T* block
        long used
        T* take(long)
    cppclass Gradients[T]:
        T *ih
        T *hh
        T *b_ih
        T *b_hh
        T *hr
    void list_rows[T](const Sequence[T]&, long, long, long, const T**, const T**, const T**, T**)
    void mask_rows[T](const Sequence[T]&, long, long, const T**, T*)

    cppclass GradientBlock:
        int weight, source, gate, gates, column, saved_column
    enum:
        IH "fastrnn::GradientBlock::kIH"
        SOURCE_X "fastrnn::GradientBlock::kX"
        SOURCE_H "fastrnn::GradientBlock::kH"
        SOURCE_SAVED "fastrnn::GradientBlock::kSaved"
    cppclass InputColumns[T]:
        long K[2]
        long column[2]
        long row[2]
    long GRADIENT_PANEL "fastrnn::kGradientPanel"
    struct CellNames:
        const char *row
        const char *cell
        const char *states
        const char *saved
        const char *gradients
    int N_CELLS "fastrnn::kCells"
    const char* ACTIVATION_NAMES "fastrnn::kActivationNames"
    cppclass CellKernels[T]:
        CellNames names
        int gates, saved_width, dgates_width, rows_per_tile, n_blocks
        cbool has_c
        GradientBlock blocks[3]
        void (*pack_forward)(Sequence[T]&, Arena[T]&)
        long (*projection_width)(long)
        void (*project_inputs)(const Sequence[T]&, long, const T* const*, T*)
        void (*pack_backward)(Sequence[T]&, Arena[T]&)
        void (*forward)(const Sequence[T]&, long)
        void (*backward)(const Sequence[T]&, long)
    cppclass Chunk[T]:
        const Sequence[T]* q
        const CellKernels[T]* cell
        const void* memory
        long s0, s1
    cppclass Kernels[T]:
        const CellKernels[T]* cell(int)
        void (*weight_gradient)(const WorkShare*, long, long, long, const T*, long, const T* const*, T*, T*)
        long (*pack_input_gradient)(InputColumns[T]&, long, const T*, T*)
        void (*input_gradient)(WorkShare*, long, long, const InputColumns[T]&, const T*, long, const T*, T* const*)
        double (*softmax_cross_entropy)(long, long, const T*, const int64_t*, T, T*)
        void (*sgd)(long, T, T, T, T, T, cbool, const T*, T*, T*)
        void (*adam)(long, T, T, T, T, T, T, T, T, const T*, T*, T*, T*)
        void (*rmsprop)(long, T, T, T, T, T, T, const T*, T*, T*, T*, T*)
        double (*sum_of_squares)(long, const T*)
        void (*sum_rows)(long, long, const T*, long, T*)
        long (*affine_size)(long, long)
        void (*pack_affine)(long, long, const T*, T*)
        void (*affine)(long, long, const T*, const T*, const T*, T*)
        void (*exp)(long, const T*, T*)
        void (*tanh)(long, const T*, T*)
        void (*sigmoid)(long, const T*, T*)
    cppclass KernelTable:
        const char* name
        cbool has_vnni
        Kernels[float] f32
        Kernels[double] f64
        const Kernels[float]& of(float)
        const Kernels[double]& of(double)
    struct KernelSet:
        const KernelTable* table
        cbool runs
    const KernelSet* kernel_sets()


class CellRow(NamedTuple):
    """A row of the table: its number, and what its columns hold."""

    number: int
    cell: str
    gates: int
    states: list
    saved: list
    gradients: list  # (name, place) of the blocks of dgates, as backward makes them


cdef list words(const char* names):
    return names.decode().split()


cdef dict read_cells():
    """The rows by name; they are the same for all instruction sets."""
    cdef const CellKernels[float]* cell
    cdef int i
    found = {}
    for i in range(N_CELLS):
        cell = kernel_sets().table.f32.cell(i)
        gradients = [(each[: len(each) - 1], int(each[len(each) - 1 :])) for each in words(cell.names.gradients)]
        found[cell.names.row.decode()] = CellRow(
            i, cell.names.cell.decode(), cell.gates, words(cell.names.states), words(cell.names.saved), gradients)
    return found

cdef dict cell_rows = read_cells()


def cells():
    """The rows of the kernel table by name."""
    return cell_rows


def activation_names():
    """Of the activations that the general cells can have, in the order of their numbers."""
    return words(ACTIVATION_NAMES)
