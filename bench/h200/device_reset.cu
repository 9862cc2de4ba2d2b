// Whether this driver lets a process have a device again that it has lost: a kernel writes where nothing is,
// every call fails then, and after cudaDeviceReset memory, copies, a stream's pool and a graph are to work.
//
//   nvcc -O2 -o /tmp/device_reset bench/h200/device_reset.cu && /tmp/device_reset
//
// Prints one line a round and "ok", or what failed; exit code 0 or 1.
#include <cuda_runtime.h>

#include <cstdio>

__global__ void wild(int* at) { *at = 1; }
__global__ void add_one(int* x) { ++*x; }

static bool fine(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::printf("%s: %s\n", what, cudaGetErrorName(error));
  return error == cudaSuccess;
}

// What the engine does on a device: a stream, memory of a pool, a recorded kernel.
static bool works() {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t launch = nullptr;
  int *x = nullptr, *pinned = nullptr;
  if (!fine(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return false;
  if (!fine(cudaMallocAsync(&x, sizeof(int), stream), "pool")) return false;
  if (!fine(cudaMallocHost(&pinned, sizeof(int)), "pinned memory")) return false;
  *pinned = 40;
  if (!fine(cudaMemcpyAsync(x, pinned, sizeof(int), cudaMemcpyHostToDevice, stream), "copy")) return false;
  if (!fine(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture")) return false;
  add_one<<<1, 1, 0, stream>>>(x);
  if (!fine(cudaStreamEndCapture(stream, &graph), "graph")) return false;
  if (!fine(cudaGraphInstantiate(&launch, graph, 0), "instantiate")) return false;
  for (int i = 0; i < 2; ++i)
    if (!fine(cudaGraphLaunch(launch, stream), "launch")) return false;
  if (!fine(cudaMemcpyAsync(pinned, x, sizeof(int), cudaMemcpyDeviceToHost, stream), "copy back"))
    return false;
  if (!fine(cudaStreamSynchronize(stream), "synchronize")) return false;
  if (*pinned != 42) std::printf("42 was expected, got %d\n", *pinned);
  return *pinned == 42;
}

int main() {
  if (!works()) return 1;
  for (int round = 1; round <= 3; ++round) {
    wild<<<1, 1>>>(reinterpret_cast<int*>(0x10));
    const cudaError_t lost = cudaDeviceSynchronize();
    const cudaError_t after = cudaDeviceSynchronize();
    const cudaError_t reset = cudaDeviceReset();
    cudaGetLastError();
    std::printf("round %d: lost by %s, then %s, reset %s\n", round, cudaGetErrorName(lost),
                cudaGetErrorName(after), cudaGetErrorName(reset));
    if (lost == cudaSuccess || !works()) return 1;
  }
  std::printf("ok\n");
  return 0;
}
