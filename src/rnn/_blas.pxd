"""The one BLAS binding: row-major products through OpenBLAS, for float and double."""

from libc.stdint cimport int64_t

ctypedef fused real:
    float
    double


cdef extern from "cblas.h" nogil:
    ctypedef enum CBLAS_ORDER:
        CblasRowMajor
    ctypedef enum CBLAS_TRANSPOSE:
        CblasNoTrans
        CblasTrans
    void scipy_cblas_sgemm(
        CBLAS_ORDER order, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k,
        float alpha, const float* a, int lda, const float* b, int ldb, float beta, float* c, int ldc)
    void scipy_cblas_dgemm(
        CBLAS_ORDER order, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k,
        double alpha, const double* a, int lda, const double* b, int ldb, double beta, double* c, int ldc)
    void scipy_openblas_set_num_threads(int n)
    char* scipy_openblas_get_config()
    char* scipy_openblas_get_corename()


cdef inline void gemm(
    bint transpose_a, bint transpose_b, int64_t m, int64_t n, int64_t k,
    const real* a, int64_t lda, const real* b, int64_t ldb, real beta, real* c, int64_t ldc) noexcept nogil:
    """C (m, n) := op(A) (m, k) . op(B) (k, n) + beta * C"""
    cdef CBLAS_TRANSPOSE ta = CblasTrans if transpose_a else CblasNoTrans
    cdef CBLAS_TRANSPOSE tb = CblasTrans if transpose_b else CblasNoTrans
    if m == 0 or n == 0:
        return
    if real is float:
        scipy_cblas_sgemm(CblasRowMajor, ta, tb, <int>m, <int>n, <int>k, 1, a, <int>lda, b, <int>ldb, beta, c, <int>ldc)
    else:
        scipy_cblas_dgemm(CblasRowMajor, ta, tb, <int>m, <int>n, <int>k, 1, a, <int>lda, b, <int>ldb, beta, c, <int>ldc)
