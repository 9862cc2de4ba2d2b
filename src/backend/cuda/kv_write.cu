// kv_write: eight elements a thread, so that it stores 8 (Q8_0, F8_E4M3), 16 or 32 bytes of a row; a block of
// 32 elements of Q8_0 is four threads', which find its largest together, a row of F8_E4M3 a warp's. Limited
// by launching it: a step's keys and values are a few hundred KB. Measured: docs/h200.md.
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"
#include "backend/cuda/kv_pages.h"
#include "backend/ops/attention.h"
#include "tensor/half.h"

namespace qiao::cuda {
namespace {

struct KvWriteArguments {
  const float *k, *v;
  int64_t k_token, k_head, v_token, v_head;  // strides
  bool aligned;                              // every row begins at a multiple of 16 bytes
  const int32_t* slots;                      // null: token t's is t
  KvLayout pages;
  int items;  // of a token: heads × 2 × runs of eight elements; F8_E4M3: × 2 alone
  int runs;   // of a row: the last may lie partly or wholly in the padding
};

__device__ unsigned pack_f16(float low, float high) {
  return __half_as_ushort(__float2half_rn(low)) |
         static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
}
__device__ unsigned pack_bf16(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// The larger, and NaN where either is.
__device__ float larger_or_nan(float a, float b) { return a > b || a != a ? a : b; }

__device__ void write_q8(const float (&x)[8], int run, int dim, unsigned char* row, bool active) {
  float most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) most = larger_or_nan(fabsf(x[i]), most);
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    most = larger_or_nan(__shfl_xor_sync(kAllLanes, most, lanes), most);
  }
  if (!active) return;
  const float wanted = most / 127.0f;
  const unsigned short scale = __half_as_ushort(__float2half_rn(wanted > 65504.0f ? 65504.0f : wanted));
  const float kept = __half2float(__ushort_as_half(scale));
  const float inverse = kept > 0.0f ? 1.0f / kept : 0.0f;
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float whole = rintf(x[i] * inverse);
    const float clamped = whole < 127.0f ? fmaxf(whole, -127.0f) : 127.0f;
    words[i / 4] |= (static_cast<unsigned>(static_cast<int>(clamped)) & 0xffu) << (8 * (i % 4));
  }
  *reinterpret_cast<uint2*>(row + 8 * run) = make_uint2(words[0], words[1]);
  if (run % 4 == 0) *reinterpret_cast<unsigned short*>(row + dim + 2 * (run / 4)) = scale;
}

template <DType kDType>
__global__ void __launch_bounds__(256) kv_write_kernel(KvWriteArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x;
  const int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const bool active = item < op.items;  // all lanes meet in the search for the largest
  const int from = active ? item : 0, run = from % op.runs, rest = from / op.runs, head = rest / 2;
  const bool value = rest % 2 != 0;
  const float* x =
      value ? op.v + token * op.v_token + head * op.v_head : op.k + token * op.k_token + head * op.k_head;
  const float4 a = load_four(x, 8 * run, op.pages.dim, op.aligned);
  const float4 b = load_four(x, 8 * run + 4, op.pages.dim, op.aligned);
  const int slot = op.slots == nullptr ? static_cast<int>(token) : op.slots[token];
  const int64_t place =
      (int64_t{2} * head + (value ? 1 : 0)) * op.pages.page_tokens + slot % op.pages.page_tokens;
  unsigned char* row =
      op.pages.memory + slot / op.pages.page_tokens * op.pages.page_bytes + place * op.pages.row_bytes;
  if constexpr (kDType == DType::kQ8_0) {
    write_q8({a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}, run, op.pages.dim, row, active);
  } else if (active) {
    if constexpr (kDType == DType::kF32) {
      reinterpret_cast<float4*>(row)[2 * run] = a;
      reinterpret_cast<float4*>(row)[2 * run + 1] = b;
    } else if constexpr (kDType == DType::kF16) {
      reinterpret_cast<uint4*>(row)[run] =
          make_uint4(pack_f16(a.x, a.y), pack_f16(a.z, a.w), pack_f16(b.x, b.y), pack_f16(b.z, b.w));
    } else {
      reinterpret_cast<uint4*>(row)[run] =
          make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
    }
  }
}

// Of a row's largest number (KvWrite's rule): the exponent of most / 448, and one more where its fraction is
// more than 448's, 1.75.
__device__ float f8_scale(float most) {
  if (most != most) return __uint_as_float(0x7fc00000u);
  if (most < kF8Smallest) return 0;
  const unsigned up = (__float_as_uint(most) + 0x1fffffu) >> 23;
  return fminf(__uint_as_float((up - 8) << 23), kF8MostScale);
}

__global__ void __launch_bounds__(256) kv_write_f8_kernel(KvWriteArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x;
  const int row = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
  if (row >= op.items) return;
  const int head = row / 2, place = row % 2 * op.pages.page_tokens + op.slots[token] % op.pages.page_tokens;
  const float* from = row % 2 != 0 ? op.v + token * op.v_token + head * op.v_head
                                   : op.k + token * op.k_token + head * op.k_head;
  const float4 a = load_four(from, 8 * lane, op.pages.dim, op.aligned);
  const float4 b = load_four(from, 8 * lane + 4, op.pages.dim, op.aligned);
  const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  float most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) most = larger_or_nan(fabsf(x[i]), most);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    most = larger_or_nan(__shfl_xor_sync(kAllLanes, most, lanes), most);
  }
  const float scale = f8_scale(most), inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const unsigned number = scale == scale ? e4m3_of(x[i] * inverse) : kNanE4M3;
    words[i / 4] |= number << (8 * (i % 4));
  }
  unsigned char* const at = op.pages.memory + op.slots[token] / op.pages.page_tokens * op.pages.page_bytes +
                            head * op.pages.head_bytes;
  if (8 * lane < op.pages.dim) {
    *reinterpret_cast<uint2*>(at + place * op.pages.row_bytes + 8 * lane) = make_uint2(words[0], words[1]);
  }
  if (lane == 0) reinterpret_cast<float*>(at + op.pages.scales_offset())[place] = scale;
}

}  // namespace

namespace {

KvWriteArguments arguments_of(const Tensor& k, const Tensor& v, const int32_t* slots, const KvLayout& pages) {
  KvWriteArguments a{k.as<float>(), v.as<float>(), k.stride[0], k.stride[1], v.stride[0],
                     v.stride[1],   false,         slots,       pages};
  const auto rows_aligned = [](const Tensor& t) {
    return aligned_16(t.data) && t.stride[0] % 4 == 0 && t.stride[1] % 4 == 0;
  };
  a.aligned = rows_aligned(k) && rows_aligned(v);
  a.runs = static_cast<int>(ceil_div(a.pages.dim, 8));
  a.items = a.pages.kv_heads * 2 * a.runs;
  return a;
}

unsigned threads_for(int64_t wanted) {
  return static_cast<unsigned>(wanted > 224 ? 256 : ceil_div(wanted, 32) * 32);
}

}  // namespace

void round_kv_rows(const char* name, const Stream& stream, const Tensor& k, const Tensor& v,
                   const KvLayout& rows) {
  const KvWriteArguments a = arguments_of(k, v, nullptr, rows);
  const unsigned threads = threads_for(a.items);
  launch(name, stream, kv_write_kernel<DType::kBF16>,
         dim3(static_cast<unsigned>(k.shape[0]), blocks_for(a.items, threads)), threads, 0, a);
}

void CudaBackend::do_kv_write(const KvWrite& op) {
  KvWriteArguments a =
      arguments_of(op.k, op.v, op.slots.as<int32_t>(), static_cast<const CudaKvPages&>(*op.pages).layout());
  const bool warps = op.pages->spec().dtype == DType::kF8_E4M3;
  if (warps) a.items = 2 * a.pages.kv_heads;
  const int64_t wanted = warps ? int64_t{32} * a.items : a.items;
  const unsigned threads = threads_for(wanted);
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(op.slots.shape[0]), blocks_for(wanted, threads));
    launch("kv_write", stream_, kernel, grid, threads, 0, a);
  };
  switch (op.pages->spec().dtype) {
    case DType::kF32:
      return run(kv_write_kernel<DType::kF32>);
    case DType::kF16:
      return run(kv_write_kernel<DType::kF16>);
    case DType::kBF16:
      return run(kv_write_kernel<DType::kBF16>);
    case DType::kF8_E4M3:
      return run(kv_write_f8_kernel);
    default:
      return run(kv_write_kernel<DType::kQ8_0>);
  }
}

}  // namespace qiao::cuda
