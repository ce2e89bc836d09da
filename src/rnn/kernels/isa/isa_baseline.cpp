// What every machine of the architecture has: SSE2 on x86-64, NEON on arm64.
#if defined(__aarch64__)
#define FASTRNN_ISA neon
#define FASTRNN_REGISTERS 32
#else
#define FASTRNN_ISA baseline
#define FASTRNN_REGISTERS 16
#endif
#define FASTRNN_VECTOR_BYTES 16
#include "isa/isa.inl"
