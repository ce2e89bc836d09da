# What the kernels offer, as kernels/table.hpp and kernels/sequence.hpp declare it. Included by _core.pyx.

cdef extern from "runtime/assert.hpp" nogil:
    void require "FASTRNN_ASSERT"(bint) noexcept  # what these loops rely on; nothing in a release build

cdef extern from "table.hpp" namespace "fastrnn" nogil:
    cppclass Rows[T]:
        T* base
        const int64_t* offset
        int64_t step
        const int64_t* place
        const int64_t* last
        T* at(int64_t, int64_t)  # row (s, b)
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
    int64_t fixed_size(int64_t)
    cppclass Norms[T]:
        T *gain_ih
        T *gain_hh
        T *gain_c
        T *bias_c
    int64_t NORM_STATISTICS "fastrnn::kNormStatistics"
    cppclass CellConfig[T]:
        int64_t I, H, P, C, saved_width, dgates_width
        Weights[T] weights
        Norms[T] norms
        Activation activation[3]
        T clip, grad_clip
        cbool coupled
        T zoneout_h, zoneout_c
        Storage storage
    cppclass CallArrays[T]:
        int64_t steps "T_"
        int64_t B
        const int64_t* start
        Rows[T] x
        Rows[int64_t] ids
        const T* h0
        const T* c0
        Rows[uint8_t] reset
        const T* h_mask
        Rows[uint8_t] keeps_h, keeps_c
        Rows[T] y
        T* c
        cbool c_in_place
        T* saved
        int64_t saved_from
        Rows[T] dy
        Rows[T] dx
        T* dh
        T* dc
        T* dpeephole
        Norms[T] dnorms
    cppclass Workspace[T]:
        const T* zeros
        const T* table
        const T* input_projection
        int64_t projection_from
        T* h_masked
        T* c_saved
        T* dh_zoneout
        T* scratch
        T* dgates
        int64_t dgates_from
        T* dprojected
        T* sums
        cbool is_packed, packs_input, packs_state, reverse_panels
        T *x_fixed
        T *h_fixed
        WorkShare* share
    cppclass Sequence[T](CellConfig[T], CallArrays[T], Workspace[T]):
        cbool can_share()
        int64_t first(int64_t)
        int64_t active(int64_t)
        T* saved_at(int64_t, int64_t)
        T* c_at(int64_t, int64_t)
    struct TeamState "fastrnn::Team":
        int64_t call
        int places
    struct WorkShare:
        int index
    void serve(TeamState*)
    void shut_down(TeamState*)
    cbool teams_back_off "fastrnn::Backoff::now"()
    void take(const WorkShare*, int64_t, int64_t*, int64_t*)
    void run_shared[Job](TeamState*, void (*)(const Job*, WorkShare*) noexcept nogil, const Job&)
    void run_step[T](TeamState*, const Sequence[T]&, void (*)(const Sequence[T]&, int64_t) noexcept nogil, int64_t)
    cbool take_flag(int*)
    void drop_flag(int*)
    struct Progress:
        int64_t steps
    int64_t nanoseconds()
    void publish(Progress*, int64_t)
    void wait_for(const Progress*, int64_t)
    struct PendingCount:
        int64_t n
    void add(PendingCount*, int64_t)
    int64_t wait_for(const PendingCount*, int64_t)
    cppclass Arena[T]:
        T* block
        int64_t used
        T* take(int64_t)
    cppclass Gradients[T]:
        T *ih
        T *hh
        T *b_ih
        T *b_hh
        T *hr
    void list_rows[T](const Sequence[T]&, int64_t, int64_t, int64_t, const T**, const T**, const T**, T**)
    void mask_rows[T](const Sequence[T]&, int64_t, int64_t, const T**, T*)

    cppclass GradientBlock:
        int weight, source, gate, gates, column, saved_column
    enum:
        IH "fastrnn::GradientBlock::kIH"
        SOURCE_X "fastrnn::GradientBlock::kX"
        SOURCE_H "fastrnn::GradientBlock::kH"
        SOURCE_SAVED "fastrnn::GradientBlock::kSaved"
    cppclass InputColumns[T]:
        int64_t K[2]
        int64_t column[2]
        int64_t row[2]
    int64_t GRADIENT_PANEL "fastrnn::kGradientPanel"
    struct CellNames:
        const char *row
        const char *cell
        const char *states
        const char *saved
        const char *gradients
    int N_CELLS "fastrnn::kCells"
    const char* ACTIVATION_NAMES "fastrnn::kActivationNames"
    cppclass ForwardKernels[T]:
        void (*pack)(Sequence[T]&, Arena[T]&)
        void (*step)(const Sequence[T]&, int64_t)
    cppclass CellKernels[T]:
        CellNames names
        int gates, saved_width, dgates_width, rows_per_tile, n_blocks
        int n_states
        GradientBlock blocks[3]
        const ForwardKernels[T]& on(Storage)
        int64_t (*projection_width)(int64_t)
        void (*project_inputs)(const Sequence[T]&, int64_t, const T* const*, T*)
        void (*pack_backward)(Sequence[T]&, Arena[T]&)
        void (*backward)(const Sequence[T]&, int64_t)
    cppclass Chunk[T]:
        const Sequence[T]* q
        const CellKernels[T]* cell
        const void* memory
        int64_t s0, s1
    cppclass Kernels[T]:
        const CellKernels[T]* cell(int)
        void (*weight_gradient)(const WorkShare*, int64_t, int64_t, int64_t, const T*, int64_t, const T* const*, T*, T*)
        int64_t (*pack_input_gradient)(InputColumns[T]&, int64_t, const T*, T*)
        void (*input_gradient)(
            WorkShare*, int64_t, int64_t, const InputColumns[T]&, const T*, int64_t, const T*, T* const*)
        double (*softmax_cross_entropy)(int64_t, int64_t, const T*, const int64_t*, T, T*)
        void (*softmax)(int64_t, int64_t, const T*, T*)
        double (*squared_error)(int64_t, T, const T*, const T*, T*)
        void (*sgd)(int64_t, T, T, T, T, T, cbool, const T*, T*, T*)
        void (*adam)(int64_t, T, T, T, T, T, T, T, T, const T*, T*, T*, T*)
        void (*rmsprop)(int64_t, T, T, T, T, T, T, const T*, T*, T*, T*, T*)
        double (*sum_of_squares)(int64_t, const T*)
        void (*sum_rows)(int64_t, int64_t, const T*, int64_t, T*)
        int64_t (*affine_size)(int64_t, int64_t)
        void (*pack_affine)(int64_t, int64_t, const T*, T*)
        void (*affine)(int64_t, int64_t, const T*, const T*, const T*, T*)
        void (*affine_rows)(int64_t, int64_t, int64_t, const T*, const T*, const T*, T*)
        void (*exp)(int64_t, const T*, T*)
        void (*tanh)(int64_t, const T*, T*)
        void (*sigmoid)(int64_t, const T*, T*)
    cppclass KernelTable:
        const char* name
        Kernels[float] f32
        Kernels[double] f64
        const Kernels[float]& of(float)
        const Kernels[double]& of(double)
    struct KernelSet:
        const KernelTable* table
        cbool runs
    const KernelSet* kernel_sets()


cdef list words(const char* names):
    return names.decode().split()


cdef dict read_cells():
    """The fields of engine.spec.CellRow of each cell, by the name of its row; they are the same for all instruction
    sets."""
    cdef const CellKernels[float]* cell
    cdef int i
    found = {}
    for i in range(N_CELLS):
        cell = kernel_sets().table.f32.cell(i)
        gradients = [(each[: len(each) - 1], int(each[len(each) - 1 :])) for each in words(cell.names.gradients)]
        found[cell.names.row.decode()] = (
            i, cell.names.cell.decode(), cell.gates, words(cell.names.states), words(cell.names.saved), gradients)
    return found

cdef dict cell_rows = read_cells()


def cells():
    """The rows of the kernel table by name."""
    return cell_rows


def activation_names():
    """The names of the activations that the general cells can have, in the order of their numbers."""
    return words(ACTIVATION_NAMES)
