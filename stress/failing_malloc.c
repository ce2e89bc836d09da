/* An allocator that fails at the n-th request; loaded before libc by LD_PRELOAD (glibc alone).
 *
 *   watch_range(start, end)   requests that come from code in there count
 *   array_memory              a handler of NumPy's (NEP 49): requests for the data of arrays count
 *   arm(n, for_good)          the n-th from now on (0: the next) fails; for_good: and so do all after it
 *   disarm()                  none fails any more; returns how many have failed since `arm`
 *
 * A request comes from the code that its return address lies in. All others, OpenBLAS's among them, are never refused.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

enum { MOST_RANGES = 64 };
static struct { uintptr_t start, end; } ranges[MOST_RANGES];
static int range_count;
static atomic_int armed, forever;
static atomic_long left, failed;

int watch_range(uintptr_t start, uintptr_t end) {
  if (range_count == MOST_RANGES) return -1;
  ranges[range_count].start = start;
  ranges[range_count++].end = end;
  return 0;
}

void arm(long n, int for_good) {
  left = n;
  failed = 0;
  forever = for_good;
  armed = 1;
}

long disarm(void) {
  armed = 0;
  return failed;
}

static int counted_out(void) {
  if (!armed) return 0;
  long before = atomic_fetch_sub(&left, 1);
  if (before > 0 || (before < 0 && !forever)) return 0;
  failed += 1;
  return 1;
}

static int refused(void* caller) {
  for (int i = 0; armed && i < range_count; ++i)
    if ((uintptr_t)caller >= ranges[i].start && (uintptr_t)caller < ranges[i].end) return counted_out();
  return 0;
}

#define REFUSE if (refused(__builtin_return_address(0))) { errno = ENOMEM; return NULL; }

void* malloc(size_t size) { REFUSE return __libc_malloc(size); }
void* calloc(size_t count, size_t size) { REFUSE return __libc_calloc(count, size); }
void* realloc(void* block, size_t size) { REFUSE return __libc_realloc(block, size); }
void* aligned_alloc(size_t alignment, size_t size) { REFUSE return __libc_memalign(alignment, size); }
int posix_memalign(void** block, size_t alignment, size_t size) {
  if (refused(__builtin_return_address(0))) return ENOMEM;
  *block = __libc_memalign(alignment, size);
  return *block == NULL ? ENOMEM : 0;
}

static void* array_malloc(void* context, size_t size) { return counted_out() ? NULL : __libc_malloc(size); }
static void* array_calloc(void* context, size_t n, size_t size) { return counted_out() ? NULL : __libc_calloc(n, size); }
static void* array_realloc(void* context, void* block, size_t size) {
  return counted_out() ? NULL : __libc_realloc(block, size);
}
static void array_free(void* context, void* block, size_t size) { free(block); }

struct {  // PyDataMem_Handler
  char name[127];
  uint8_t version;
  void* context;
  void* (*malloc)(void*, size_t);
  void* (*calloc)(void*, size_t, size_t);
  void* (*realloc)(void*, void*, size_t);
  void (*free)(void*, void*, size_t);
} array_memory = {"failing", 1, NULL, array_malloc, array_calloc, array_realloc, array_free};
