// What the optimizer does with runs of parameters: one pass over memory each, whose bandwidth is the limit.
// Moments of codes have a block for the 256 numbers under one scale.
#include "backend/ops/optimizer.h"

#include <cmath>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {
namespace {

constexpr int kOptimizerThreads = 256;
static_assert(kOptimizerThreads == kCodeBlock);
constexpr int64_t kSquaresRun = 4096;

// Of 256 threads, in the first one.
__device__ double block_sum(double x, double* shared) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_sum(threadIdx.x < kOptimizerThreads / 32 ? shared[threadIdx.x] : 0.0);
}

// sums[run]: a thread adds up every 256th of a run's elements, ascending; then the threads fold pairwise.
__global__ void __launch_bounds__(kOptimizerThreads)
    squares_of_runs(const float* x, int64_t count, double* sums) {
  begin_kernel();
  const int64_t begin = int64_t{blockIdx.x} * kSquaresRun;
  const int64_t end = begin + kSquaresRun < count ? begin + kSquaresRun : count;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kOptimizerThreads) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  QIAO_SHARED(double, partial, kOptimizerThreads / 32);
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kOptimizerThreads) add_runs(const double* sums, int64_t runs, double* all) {
  begin_kernel();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < runs; i += kOptimizerThreads) sum += sums[i];
  QIAO_SHARED(double, partial, kOptimizerThreads / 32);
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) *all += sum;
}

__global__ void __launch_bounds__(kOptimizerThreads)
    accumulate_kernel(const float* x, float* sum, int64_t count) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kOptimizerThreads + threadIdx.x;
  if (i < count) sum[i] += x[i];
}

// As ops/optimizer.h has them, rounded once.
struct Constants {
  float gradient_scale, beta1, beta1_rest, beta2, beta2_rest, decay, step_size, root, epsilon;

  explicit Constants(const AdamW& op) {
    const auto step = static_cast<double>(op.step);
    const auto rounded = [](double value) { return static_cast<float>(value); };
    gradient_scale = rounded(op.gradient_scale);
    beta1 = rounded(op.beta1), beta1_rest = rounded(1 - op.beta1);
    beta2 = rounded(op.beta2), beta2_rest = rounded(1 - op.beta2);
    decay = rounded(1 - op.learning_rate * op.weight_decay);
    step_size = rounded(op.learning_rate / (1 - std::pow(op.beta1, step)));
    root = rounded(1 / std::sqrt(1 - std::pow(op.beta2, step)));
    epsilon = rounded(op.epsilon);
  }
};

__device__ void take_step(const Constants& c, float gradient, float* p, float* m, float* v) {
  const float g = c.gradient_scale * gradient;
  *m = c.beta1 * *m + c.beta1_rest * g;
  *v = c.beta2 * *v + c.beta2_rest * (g * g);
  *p = c.decay * *p - c.step_size * (*m / (sqrtf(*v) * c.root + c.epsilon));
}

__device__ float moment_of(float value) { return value; }
__device__ float moment_of(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ void keep_moment(float value, float* to) { *to = value; }
__device__ void keep_moment(float value, __nv_bfloat16* to) { *to = __float2bfloat16(value); }

template <class M>
__global__ void __launch_bounds__(kOptimizerThreads)
    adamw_kernel(Constants c, const float* gradients, float* parameters, M* first, M* second, int64_t count) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kOptimizerThreads + threadIdx.x;
  if (i >= count) return;
  float m = moment_of(first[i]), v = moment_of(second[i]);
  take_step(c, gradients[i], parameters + i, &m, &v);
  keep_moment(m, first + i);
  keep_moment(v, second + i);
}

__device__ int code_of(const float* boundary, float x) {
  int low = 0, high = 255;  // the number of boundaries below x
  while (low < high) {
    const int middle = (low + high) / 2;
    if (boundary[middle] < x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ float block_max(float x, float* shared) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_max(shared[threadIdx.x % (kOptimizerThreads / 32)]);
}

__global__ void __launch_bounds__(kOptimizerThreads)
    adamw_codes_kernel(Constants c, const float* gradients, float* parameters, uint8_t* first,
                       float* first_scales, uint8_t* second, float* second_scales, const DynamicCodes* codes,
                       int64_t count) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kOptimizerThreads + threadIdx.x;
  const bool mine = i < count;
  float m = 0, v = 0;
  if (mine) {
    m = codes[0].value[first[i]] * first_scales[blockIdx.x];
    v = codes[1].value[second[i]] * second_scales[blockIdx.x];
    take_step(c, gradients[i], parameters + i, &m, &v);
  }
  QIAO_SHARED(float, most_first, kOptimizerThreads / 32);
  QIAO_SHARED(float, most_second, kOptimizerThreads / 32);
  const float first_scale = block_max(fabsf(m), most_first), second_scale = block_max(fabsf(v), most_second);
  if (threadIdx.x == 0) first_scales[blockIdx.x] = first_scale, second_scales[blockIdx.x] = second_scale;
  if (!mine) return;
  first[i] =
      static_cast<uint8_t>(code_of(codes[0].boundary.data(), first_scale > 0 ? m / first_scale : 0.0f));
  const int code = code_of(codes[1].boundary.data(), second_scale > 0 ? v / second_scale : 0.0f);
  second[i] = static_cast<uint8_t>(code == 0 && v > 0 ? 1 : code);
}

}  // namespace

void CudaBackend::do_sum_of_squares(const SumOfSquares& op) {
  const int64_t count = op.x.shape[0], runs = ceil_div(count, kSquaresRun);
  if (count == 0) return;
  const Scratch sums(memory_, static_cast<size_t>(runs) * sizeof(double));
  launch("sum_of_squares", stream_, squares_of_runs, static_cast<unsigned>(runs), kOptimizerThreads, 0,
         op.x.as<float>(), count, sums.as<double>());
  launch("sum_of_squares", stream_, add_runs, 1, kOptimizerThreads, 0, sums.as<double>(), runs,
         op.sum.as<double>());
}

void CudaBackend::do_accumulate(const Accumulate& op) {
  const int64_t count = op.x.shape[0];
  launch("accumulate", stream_, accumulate_kernel, blocks_for(count, kOptimizerThreads), kOptimizerThreads, 0,
         op.x.as<float>(), op.sum.as<float>(), count);
}

void CudaBackend::do_adamw(const AdamW& op) {
  const Constants constants(op);
  const int64_t count = op.parameters.shape[0];
  const unsigned blocks = blocks_for(count, kOptimizerThreads);
  const float* gradients = op.gradients.as<float>();
  float* parameters = op.parameters.as<float>();
  if (op.first_moment.dtype == DType::kF32) {
    launch("adamw", stream_, adamw_kernel<float>, blocks, kOptimizerThreads, 0, constants, gradients,
           parameters, op.first_moment.as<float>(), op.second_moment.as<float>(), count);
  } else if (op.first_moment.dtype == DType::kBF16) {
    launch("adamw", stream_, adamw_kernel<__nv_bfloat16>, blocks, kOptimizerThreads, 0, constants, gradients,
           parameters, op.first_moment.as<__nv_bfloat16>(), op.second_moment.as<__nv_bfloat16>(), count);
  } else {
    if (codes_.data() == nullptr) {
      const DynamicCodes both[2] = {signed_codes(), unsigned_codes()};
      codes_ = allocate(sizeof both);
      upload(codes_.data(), both, sizeof both);
    }
    launch("adamw", stream_, adamw_codes_kernel, blocks, kOptimizerThreads, 0, constants, gradients,
           parameters, op.first_moment.as<uint8_t>(), op.first_scales.as<float>(),
           op.second_moment.as<uint8_t>(), op.second_scales.as<float>(),
           static_cast<const DynamicCodes*>(codes_.data()), count);
  }
}

}  // namespace qiao::cuda
