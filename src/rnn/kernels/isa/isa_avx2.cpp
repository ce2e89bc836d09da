#include "table.hpp"  // before the target: what is not of one instruction set is compiled for all

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FASTRNN_ISA avx2
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_REGISTERS 16
#include "isa/isa.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
