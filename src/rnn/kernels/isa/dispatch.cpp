// Which instruction sets this build has, and which of them this machine runs.
#include "table.hpp"

namespace fastrnn {

#if defined(__x86_64__)
namespace avx512 { extern const KernelTable table, with_vnni; }
namespace avx2 { extern const KernelTable table; }
namespace baseline { extern const KernelTable table; }

const KernelSet* kernel_sets() {
  __builtin_cpu_init();
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  static const KernelSet sets[] = {
      {&avx512::with_vnni, avx512 && __builtin_cpu_supports("avx512vnni")},
      {&avx512::table, avx512},
      {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {&baseline::table, true},
      {nullptr, false}};
  return sets;
}
#elif defined(__aarch64__)
namespace neon { extern const KernelTable table; }

const KernelSet* kernel_sets() {
  static const KernelSet sets[] = {{&neon::table, true}, {nullptr, false}};
  return sets;
}
#else
namespace baseline { extern const KernelTable table; }

const KernelSet* kernel_sets() {
  static const KernelSet sets[] = {{&baseline::table, true}, {nullptr, false}};
  return sets;
}
#endif

}  // namespace fastrnn
