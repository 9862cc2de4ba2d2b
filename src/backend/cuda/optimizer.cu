// What the optimizer does with runs of parameters: one pass over memory each, whose bandwidth is the limit.
// Moments of codes have a warp for the 256 numbers under one scale, and a table that tells a number's code
// but for some few.
#include "backend/ops/optimizer.h"

#include <bit>
#include <cmath>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {
namespace {

constexpr int kOptimizerThreads = 256;
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
    accumulate_kernel(const float* x, float* sum, int64_t count, bool aligned) {
  begin_kernel();
  const int64_t at = 4 * (int64_t{blockIdx.x} * kOptimizerThreads + threadIdx.x);
  if (at >= count) return;
  const float4 a = load_four(sum, at, count, aligned), b = load_four(x, at, count, aligned);
  store_four(sum, at, count, aligned, make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w));
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

// Where the search for a code begins: at the number of boundaries below all numbers that share a sign, an
// exponent and the first five bits after it. Some three boundaries lie among those at most.
constexpr int kStartShift = 18;
constexpr uint32_t kFirstStart = (127u - 23) << (23 - kStartShift);  // numbers below 2^-23 share one
constexpr uint32_t kStarts = (127u << (23 - kStartShift)) - kFirstStart + 1;
struct CodeTable {
  DynamicCodes codes;
  uint8_t start[2][kStarts];  // of positive numbers, of negative ones

  explicit CodeTable(const DynamicCodes& of) : codes(of) {
    for (uint32_t i = 0; i < kStarts; ++i) {
      const uint32_t least = i == 0 ? 0 : (kFirstStart + i) << kStartShift;
      const uint32_t most = ((kFirstStart + i + 1) << kStartShift) - 1;
      start[0][i] = of.code_of(std::bit_cast<float>(least));
      start[1][i] = of.code_of(-std::bit_cast<float>(most));
    }
  }
};

__device__ uint32_t code_of(const CodeTable& table, float x) {
  const uint32_t bits = __float_as_uint(x), place = (bits & 0x7fffffffu) >> kStartShift;
  const uint32_t at = place < kFirstStart ? 0 : min(place - kFirstStart, kStarts - 1);
  uint32_t code = x == x ? table.start[bits >> 31][at] : 0;
  while (code < 255 && table.codes.boundary[code] < x) ++code;
  return code;
}

// A lane has two runs of four of its warp's 256, at 4 * lane and at 128 + 4 * lane.
struct CodesArguments {
  Constants constants;
  const float* gradients;
  float* parameters;
  uint8_t *first, *second;
  float *first_scales, *second_scales;
  const CodeTable* tables;  // of first moments, of second ones
  int64_t count;
  bool aligned;  // to vectors of four
};

__device__ uint32_t load_codes(const uint8_t* codes, int64_t at, int64_t count, bool aligned) {
  if (aligned && at + 4 <= count) return *reinterpret_cast<const uint32_t*>(codes + at);
  uint32_t four = 0;
  for (int i = 0; i < 4; ++i) {
    if (at + i < count) four |= uint32_t{codes[at + i]} << (8 * i);
  }
  return four;
}
__device__ void store_codes(uint8_t* codes, int64_t at, int64_t count, bool aligned, uint32_t four) {
  if (aligned && at + 4 <= count) {
    *reinterpret_cast<uint32_t*>(codes + at) = four;
    return;
  }
  for (int i = 0; i < 4; ++i) {
    if (at + i < count) codes[at + i] = static_cast<uint8_t>(four >> (8 * i));
  }
}

__global__ void __launch_bounds__(kOptimizerThreads) adamw_codes_kernel(CodesArguments op) {
  begin_kernel();
  QIAO_SHARED(uint32_t, words, 2 * sizeof(CodeTable) / 4);
  static_assert(sizeof(CodeTable) % 4 == 0);
  const int64_t block = int64_t{blockIdx.x} * (kOptimizerThreads / 32) + threadIdx.x / 32;
  const int64_t begin = block * kCodeBlock, own = begin + 4 * (threadIdx.x % 32);
  const bool mine = begin < op.count;
  const float first_scale = mine ? op.first_scales[block] : 0,
              second_scale = mine ? op.second_scales[block] : 0;
  float m[8], v[8], p[8], g[8];
  uint32_t first[2], second[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int64_t at = own + 128 * j;
    const float4 four_g = load_four(op.gradients, at, op.count, op.aligned);
    const float4 four_p = load_four(op.parameters, at, op.count, op.aligned);
    first[j] = load_codes(op.first, at, op.count, op.aligned);
    second[j] = load_codes(op.second, at, op.count, op.aligned);
    g[4 * j] = four_g.x, g[4 * j + 1] = four_g.y, g[4 * j + 2] = four_g.z, g[4 * j + 3] = four_g.w;
    p[4 * j] = four_p.x, p[4 * j + 1] = four_p.y, p[4 * j + 2] = four_p.z, p[4 * j + 3] = four_p.w;
  }
  for (unsigned i = threadIdx.x; i < 2 * sizeof(CodeTable) / 4; i += kOptimizerThreads)
    words[i] = reinterpret_cast<const uint32_t*>(op.tables)[i];
  __syncthreads();
  if (!mine) return;  // of a warp for itself: no barrier follows
  const auto* tables = reinterpret_cast<const CodeTable*>(words);
  float most_first = 0, most_second = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    m[i] = tables[0].codes.value[first[i / 4] >> (8 * (i % 4)) & 0xff] * first_scale;
    v[i] = tables[1].codes.value[second[i / 4] >> (8 * (i % 4)) & 0xff] * second_scale;
    take_step(op.constants, g[i], p + i, m + i, v + i);
    if (own + 128 * (i / 4) + i % 4 >= op.count) m[i] = v[i] = 0;
    most_first = fmaxf(most_first, fabsf(m[i])), most_second = fmaxf(most_second, fabsf(v[i]));
  }
  most_first = warp_max(most_first), most_second = warp_max(most_second);
  if (threadIdx.x % 32 == 0) op.first_scales[block] = most_first, op.second_scales[block] = most_second;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int64_t at = own + 128 * j;
    uint32_t first_codes = 0, second_codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      first_codes |= code_of(tables[0], most_first > 0 ? m[4 * j + i] / most_first : 0.0f) << (8 * i);
      const uint32_t code = code_of(tables[1], most_second > 0 ? v[4 * j + i] / most_second : 0.0f);
      second_codes |= (code == 0 && v[4 * j + i] > 0 ? 1 : code) << (8 * i);
    }
    store_codes(op.first, at, op.count, op.aligned, first_codes);
    store_codes(op.second, at, op.count, op.aligned, second_codes);
    store_four(op.parameters, at, op.count, op.aligned,
               make_float4(p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3]));
  }
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
  const float* x = op.x.as<float>();
  float* sum = op.sum.as<float>();
  launch("accumulate", stream_, accumulate_kernel, blocks_for(count, 4 * kOptimizerThreads),
         kOptimizerThreads, 0, x, sum, count, aligned_16(x) && aligned_16(sum));
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
      const CodeTable both[2] = {CodeTable(signed_codes()), CodeTable(unsigned_codes())};
      codes_ = allocate(sizeof both);
      upload(codes_.data(), both, sizeof both);
    }
    CodesArguments a{constants, gradients, parameters};
    a.first = op.first_moment.as<uint8_t>(), a.second = op.second_moment.as<uint8_t>();
    a.first_scales = op.first_scales.as<float>(), a.second_scales = op.second_scales.as<float>();
    a.tables = static_cast<const CodeTable*>(codes_.data());
    a.count = count;
    const auto codes_aligned = [](const uint8_t* data) { return reinterpret_cast<uintptr_t>(data) % 4 == 0; };
    a.aligned =
        aligned_16(gradients) && aligned_16(parameters) && codes_aligned(a.first) && codes_aligned(a.second);
    launch("adamw", stream_, adamw_codes_kernel, blocks_for(count, kCodeBlock * kOptimizerThreads / 32),
           kOptimizerThreads, 0, a);
  }
}

}  // namespace qiao::cuda
