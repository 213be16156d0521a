/* Memory of large results, kept between uses.
 *
 * The C library returns large blocks to the system as soon as they are freed, and the system clears every page again when it is
 * touched next: more time than most kernels spend on the data. Here freed blocks wait for the next request. Blocks in use and
 * blocks waiting together never exceed the most that was in use at once by more than a half: without that slack, sizes that
 * change a little from step to step would push each other out.
 */
#include <dlpack/dlpack.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

enum { kGranule = 2 << 20 }; /* a large page: fewer faults, fewer misses of address translation */

typedef struct Block {
  DLManagedTensor tensor;
  int64_t shape[1];
  void* base;
  size_t bytes;
  struct Block* next;
} Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block* waiting = NULL; /* the block freed last comes first */
static size_t in_use = 0, waiting_bytes = 0, most_in_use = 0;

static void* map_pages(size_t bytes) {
  void* base = aligned_alloc(kGranule, bytes);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (base) madvise(base, bytes, MADV_HUGEPAGE);
#endif
  return base;
}

static void destroy(Block* block) {
  free(block->base);
  free(block);
}

/* Takes the smallest waiting block that fits without wasting more than a quarter. */
static Block* reuse(size_t bytes) {
  Block** best = NULL;
  for (Block** at = &waiting; *at; at = &(*at)->next)
    if ((*at)->bytes >= bytes && (*at)->bytes <= bytes + bytes / 4 + kGranule && (!best || (*at)->bytes < (*best)->bytes))
      best = at;
  if (!best) return NULL;
  Block* found = *best;
  *best = found->next;
  waiting_bytes -= found->bytes;
  return found;
}

static void drop_oldest(void) {
  Block** at = &waiting;
  while ((*at)->next) at = &(*at)->next;
  Block* oldest = *at;
  *at = NULL;
  waiting_bytes -= oldest->bytes;
  destroy(oldest);
}

static void give_back(DLManagedTensor* tensor) {
  Block* block = (Block*)tensor->manager_ctx;
  pthread_mutex_lock(&lock);
  in_use -= block->bytes;
  waiting_bytes += block->bytes;
  block->next = waiting;
  waiting = block;
  pthread_mutex_unlock(&lock);
}

/* A tensor of `count` float32 for the DLPack exchange, or NULL if there is no memory. Its contents are anything. */
DLManagedTensor* dsgc_take_floats(int64_t count) {
  size_t bytes = ((size_t)count * sizeof(float) + kGranule - 1) / kGranule * kGranule;
  pthread_mutex_lock(&lock);
  Block* block = reuse(bytes);
  if (!block) {
    size_t wanted = in_use + bytes;
    size_t most = wanted > most_in_use ? wanted : most_in_use;
    while (waiting && wanted + waiting_bytes > most + most / 2) drop_oldest();
    block = calloc(1, sizeof(Block));
    if (block && !(block->base = map_pages(bytes))) {
      free(block);
      block = NULL;
    }
    if (block) block->bytes = bytes;
  }
  if (block) in_use += block->bytes;
  if (in_use > most_in_use) most_in_use = in_use;
  pthread_mutex_unlock(&lock);
  if (!block) return NULL;
  block->shape[0] = count;
  block->tensor.dl_tensor.data = block->base;
  block->tensor.dl_tensor.device = (DLDevice){kDLCPU, 0};
  block->tensor.dl_tensor.ndim = 1;
  block->tensor.dl_tensor.dtype = (DLDataType){kDLFloat, 32, 1};
  block->tensor.dl_tensor.shape = block->shape;
  block->tensor.dl_tensor.strides = NULL;
  block->tensor.dl_tensor.byte_offset = 0;
  block->tensor.manager_ctx = block;
  block->tensor.deleter = give_back;
  return &block->tensor;
}

/* Returns all waiting memory to the system, and what the C library holds free; the bytes of the first. */
int64_t dsgc_release_memory(void) {
  pthread_mutex_lock(&lock);
  size_t released = waiting_bytes;
  while (waiting) drop_oldest();
  most_in_use = in_use;
  pthread_mutex_unlock(&lock);
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  return (int64_t)released;
}
