/* CPU runtime of generated kernels: threads and workspace, on OpenMP.
 *
 * Generated code reaches threads and scratch memory through four function pointers that are filled when a kernel library is
 * loaded. This file supplies them on top of OpenMP. In a process that holds torch, libgomp is torch's own copy, so kernels run
 * on torch's threads, obey torch.set_num_threads, and never compete with a second pool.
 *
 * A parallel loop is cut into more tasks than threads and the tasks are handed out dynamically, because the work of sparse tasks
 * is uneven. Results do not depend on the thread count: tasks write to separate memory.
 */
#include <omp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

typedef struct {
  void* sync_handle;
  int32_t num_task;
} ParallelGroup;
typedef int (*ParallelLambda)(int task_id, ParallelGroup* group, void* closure);

enum { kTasksPerThread = 8, kAlignment = 64, kSpares = 8 };

int TVMBackendParallelLaunch(ParallelLambda body, void* closure, int requested) {
  int threads = requested > 0 ? requested : omp_get_max_threads();
  int failed = 0;
  if (threads == 1 || omp_in_parallel()) {
    ParallelGroup group = {0, 1};
    return body(0, &group, closure);
  }
  int tasks = threads * kTasksPerThread;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
  for (int task = 0; task < tasks; ++task) {
    ParallelGroup group = {0, tasks};
    failed |= body(task, &group, closure);
  }
  return failed;
}

/* Barriers inside a parallel loop need one thread a task, which dynamic scheduling does not give: no kernel uses them. */
int TVMBackendParallelBarrier(int task_id, ParallelGroup* group) {
  (void)task_id;
  (void)group;
  return -1;
}

/* Workspace of a kernel: a few pieces a thread wait for their next use, because kernels ask for the same ones at every turn of a
 * parallel loop and the C library's aligned allocation costs more than such a turn. A header before each piece holds its size. */
typedef struct {
  void* piece;
  uint64_t bytes;
} Spare;
static __thread Spare spare[kSpares];

/* A thread that ends gives its pieces back. */
static pthread_key_t ending;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int watches_threads;

static void release_spares(void* pieces) {
  for (Spare* one = pieces; one < (Spare*)pieces + kSpares; ++one) {
    if (one->piece) free((char*)one->piece - kAlignment);
    one->piece = NULL;
  }
}

static void watch_threads(void) { watches_threads = pthread_key_create(&ending, release_spares) == 0; }

__attribute__((destructor)) static void unwatch_threads(void) {
  if (watches_threads) pthread_key_delete(ending);
}

void* TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type;
  (void)device_id;
  (void)code;
  (void)bits;
  for (int i = 0; i < kSpares; ++i) {
    if (spare[i].piece && spare[i].bytes >= bytes && spare[i].bytes <= 2 * bytes + kAlignment) {
      void* found = spare[i].piece;
      spare[i].piece = NULL;
      return found;
    }
  }
  uint64_t rounded = (bytes + kAlignment - 1) & ~(uint64_t)(kAlignment - 1);
  char* base = aligned_alloc(kAlignment, rounded + kAlignment);
  if (!base) return NULL;
  *(uint64_t*)base = rounded;
  return base + kAlignment;
}

int TVMBackendFreeWorkspace(int device_type, int device_id, void* pointer) {
  (void)device_type;
  (void)device_id;
  if (!pointer) return 0;
  pthread_once(&once, watch_threads);
  if (watches_threads && !pthread_getspecific(ending)) pthread_setspecific(ending, spare);
  char* base = (char*)pointer - kAlignment;
  uint64_t bytes = *(uint64_t*)base;
  static __thread int oldest = 0;
  int place = -1;
  for (int i = 0; i < kSpares && place < 0; ++i)
    if (!spare[i].piece) place = i;
  if (place < 0) {
    place = oldest = (oldest + 1) % kSpares;
    free((char*)spare[place].piece - kAlignment);
  }
  spare[place].piece = pointer;
  spare[place].bytes = bytes;
  return 0;
}

/* Called before every library is loaded: the last registration wins, and importing TVM's compiler registers its own. */
void dsgc_register_runtime(void) {
#define REGISTER(symbol) TVMFFIEnvModRegisterContextSymbol("__" #symbol, (void*)symbol)
  REGISTER(TVMBackendParallelLaunch);
  REGISTER(TVMBackendParallelBarrier);
  REGISTER(TVMBackendAllocWorkspace);
  REGISTER(TVMBackendFreeWorkspace);
  REGISTER(TVMFFIFunctionCall);
  REGISTER(TVMFFIErrorSetRaisedFromCStr);
  REGISTER(TVMFFIEnvModLookupFromImports);
  REGISTER(TVMFFIHandleInitOnce);
#undef REGISTER
}

int dsgc_thread_count(void) { return omp_get_max_threads(); }

/* For parallel loops that the calling thread begins from now on. */
void dsgc_set_thread_count(int count) { omp_set_num_threads(count); }
