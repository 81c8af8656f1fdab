/* A CUDA runtime with one device whose memory is the host's: it allocates, copies, counts waits for events, and computes
   nothing. Built and preloaded by conftest.py, which adds an empty function for every other name that torch asks for. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define E __attribute__((visibility("default")))
typedef cudaError_t R;

static __thread long waits; /* of a thread */
E long nullcuda_waits(void) { return waits; }

/* The device. */
E R cudaGetDeviceCount(int *n) { *n = 1; return 0; }
E R cudaGetDevice(int *d) { *d = 0; return 0; }
E R cudaSetDevice(int d) { return 0; }
E R cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
E R cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
E R cudaMemGetInfo(size_t *f, size_t *t) { *f = 79ul << 30; *t = 80ul << 30; return 0; }
E R cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -5; return 0; }
E R cudaDeviceGetPCIBusId(char *b, int n, int d) { snprintf(b, n, "0000:00:00.0"); return 0; }
E R cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "pretend GPU");
  p->major = 9; p->multiProcessorCount = 132; p->totalGlobalMem = 80ul << 30; p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048; p->maxBlocksPerMultiProcessor = 32; p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535; p->l2CacheSize = 50 << 20;
  p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = 232448; p->sharedMemPerMultiprocessor = 233472;
  p->unifiedAddressing = p->concurrentKernels = p->managedMemory = 1;
  return 0;
}
E R cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  struct cudaDeviceProp p;
  cudaGetDeviceProperties(&p, d);
  *v = a == cudaDevAttrComputeCapabilityMajor ? p.major : a == cudaDevAttrComputeCapabilityMinor ? p.minor
     : a == cudaDevAttrMultiProcessorCount ? p.multiProcessorCount : a == cudaDevAttrWarpSize ? p.warpSize
     : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? p.sharedMemPerBlockOptin
     : a == cudaDevAttrMaxThreadsPerMultiProcessor ? p.maxThreadsPerMultiProcessor : 1;
  return 0;
}

/* Memory. */
E R cudaMalloc(void **p, size_t n) { *p = aligned_alloc(512, (n + 511) / 512 * 512); return *p ? 0 : cudaErrorMemoryAllocation; }
E R cudaFree(void *p) { free(p); return 0; }
static struct { char *start; size_t size; } pinned[4096];
static void pin(void *p, size_t n) {
  for (int i = 0; i < 4096; i++) if (!pinned[i].start) { pinned[i].start = p; pinned[i].size = n; return; }
}
static void unpin(void *p) { for (int i = 0; i < 4096; i++) if (pinned[i].start == p) pinned[i].start = 0; }
E R cudaHostAlloc(void **p, size_t n, unsigned f) { R e = cudaMalloc(p, n); pin(*p, n); return e; }
E R cudaFreeHost(void *p) { unpin(p); free(p); return 0; }
E R cudaHostRegister(void *p, size_t n, unsigned f) { pin(p, n); return 0; }
E R cudaHostUnregister(void *p) { unpin(p); return 0; }
E R cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  for (int i = 0; i < 4096; i++)
    if (pinned[i].start && (char *)p >= pinned[i].start && (char *)p < pinned[i].start + pinned[i].size) {
      a->type = cudaMemoryTypeHost;
      a->hostPointer = a->devicePointer = (void *)p;
    }
  return 0;
}
E R cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) { memmove(to, from, n); return 0; }
E R cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) { memmove(to, from, n); return 0; }
E R cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { memset(p, v, n); return 0; }

/* Launches, streams, events. */
E R cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return 0; }
E R __cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return 0; }
E R cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return 0; }
E R cudaDeviceSynchronize(void) { waits++; return 0; }
E R cudaEventSynchronize(cudaEvent_t e) { waits++; return 0; }
E R cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = malloc(8); return 0; }
E R cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = malloc(8); return 0; }
E R cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return 0; }
E R cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = 0; return 0; }
E R cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = malloc(8); return 0; }
E R cudaEventCreate(cudaEvent_t *e) { *e = malloc(8); return 0; }

/* What torch asks of a kernel before it launches it. */
E R cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) { *n = 2; return 0; }
E R cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->binaryVersion = a->ptxVersion = 90;
  return 0;
}
E const char *cudaGetErrorString(R e) { return "pretend error"; }
E const char *cudaGetErrorName(R e) { return "pretend"; }
static int nothing(void) { return 0; }
E R cudaGetDriverEntryPointByVersion(const char *n, void **f, unsigned v, unsigned long long g, enum cudaDriverEntryPointQueryResult *r) {
  *f = (void *)nothing;
  if (r) *r = 0;
  return 0;
}

/* The driver, and cuBLAS. */
E int cuInit(unsigned f) { return 0; }
E int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) { *f = 0; *active = 1; return 0; }
E int cuGetErrorString(int e, const char **s) { *s = "pretend error"; return 0; }
E int cublasCreate_v2(void **h) { *h = malloc(8); return 0; }
E int cublasLtCreate(void **h) { *h = malloc(8); return 0; }
E int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int n, void *r, int *found) { *found = 1; return 0; }
E const char *cublasGetStatusString(int s) { return "pretend"; }
