// The stand-in itself: what a warp does together, barriers, copies and products, against plain loops; and
// that it finds what a device leaves undefined.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

#include "backend/cuda/kernel.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/error.h"

namespace qiao::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CudaStandInTest : public ::testing::Test {
 protected:
  CudaStandInTest() { stand_in::reset(); }

  // Runs `kernel` and gives what the waiting call threw; empty where nothing went wrong.
  template <class... P, class... A>
  static std::string run(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
    const Stream stream(0);
    try {
      launch("test", stream, kernel, grid, block, shared, arguments...);
      stream.synchronize();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
};

__global__ void shuffles(int* xored, int* up, int* down, int* from, int* ballots) {
  begin_kernel();
  const int lane = static_cast<int>(threadIdx.x);
  xored[lane] = __shfl_xor_sync(kAllLanes, lane * 10, 5);
  up[lane] = __shfl_up_sync(kAllLanes, lane * 10, 3);
  down[lane] = __shfl_down_sync(kAllLanes, lane * 10, 3, 8);
  from[lane] = __shfl_sync(kAllLanes, lane * 10, 2, 16);
  ballots[lane] = static_cast<int>(__ballot_sync(kAllLanes, lane % 3 == 0));
}

TEST_F(CudaStandInTest, LanesReadEachOther) {
  std::array<int, 32> xored{}, up{}, down{}, from{}, ballots{};
  EXPECT_EQ(run(shuffles, 1, 32, 0, xored.data(), up.data(), down.data(), from.data(), ballots.data()), "");
  for (int lane = 0; lane < 32; ++lane) {
    const auto i = static_cast<size_t>(lane);
    EXPECT_EQ(xored[i], (lane ^ 5) * 10);
    EXPECT_EQ(up[i], (lane < 3 ? lane : lane - 3) * 10);
    EXPECT_EQ(down[i], (lane % 8 < 5 ? lane + 3 : lane) * 10);
    EXPECT_EQ(from[i], (lane / 16 * 16 + 2) * 10);
    EXPECT_EQ(ballots[i], 0x49249249);
  }
}

__global__ void part_of_a_warp(int* out) {
  begin_kernel();
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_xor_sync(0xffu, static_cast<int>(threadIdx.x), 1);
}

TEST_F(CudaStandInTest, AMaskedShuffleNeedsThatPartAlone) {
  std::array<int, 8> out{};
  EXPECT_EQ(run(part_of_a_warp, 1, 32, 0, out.data()), "");
  EXPECT_THAT(out, ElementsAre(1, 0, 3, 2, 5, 4, 7, 6));
}

__global__ void reverse(const float* in, float* out) {
  begin_kernel();
  auto* tile = shared_memory<float>();
  tile[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier(const float* in, float* out) {
  begin_kernel();
  auto* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

TEST_F(CudaStandInTest, ABarrierIsWaitedForAndAMissingOneShows) {
  std::array<float, 256> in{}, out{};
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  EXPECT_EQ(run(reverse, 2, 128, 128 * sizeof(float), in.data(), out.data()), "");
  for (size_t i = 0; i < 128; ++i) {
    EXPECT_EQ(out[i], static_cast<float>(127 - i));
    EXPECT_EQ(out[128 + i], static_cast<float>(255 - i));
  }
  EXPECT_EQ(run(reverse_without_barrier, 1, 128, 128 * sizeof(float), in.data(), out.data()), "");
  EXPECT_TRUE(std::any_of(out.begin(), out.begin() + 128, [](float x) { return std::isnan(x); }));
}

__global__ void some_leave() {
  begin_kernel();
  if (threadIdx.x >= 32) return;
  __syncthreads();
}
__global__ void two_barriers() {
  begin_kernel();
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void half_a_shuffle(int* out) {
  begin_kernel();
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 2);
}
__global__ void different_instructions(int* out) {
  begin_kernel();
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 2);
  } else {
    out[threadIdx.x] = static_cast<int>(__ballot_sync(kAllLanes, 1));
  }
}
__global__ void foreign_mask(int* out) {
  begin_kernel();
  if (threadIdx.x == 3) out[0] = __shfl_sync(0x7u, 1, 0);
}

TEST_F(CudaStandInTest, ThreadsThatDoNotComeTogetherAreFound) {
  std::array<int, 64> out{};
  EXPECT_THAT(run(some_leave, 1, 64, 0), HasSubstr("32 of 64 threads ended, the others wait for ever"));
  EXPECT_THAT(stand_in::faults(), ElementsAre(HasSubstr("(a barrier)")));
  stand_in::reset();
  EXPECT_THAT(run(two_barriers, 1, 64, 0), HasSubstr("where others came to it at"));
  stand_in::reset();
  EXPECT_THAT(run(half_a_shuffle, 1, 32, 0, out.data()), HasSubstr("wait for ever"));
  stand_in::reset();
  EXPECT_THAT(run(different_instructions, 1, 32, 0, out.data()), HasSubstr("where lane"));
  stand_in::reset();
  EXPECT_THAT(run(foreign_mask, 1, 32, 0, out.data()), HasSubstr("the mask is without its own lane"));
}

__global__ void nothing() { begin_kernel(); }
__global__ void overrun() {
  begin_kernel();
  if (threadIdx.x == 0) shared_memory<int>()[16] = 1;
}
__global__ void read_what_nobody_wrote(float* out) {
  begin_kernel();
  out[threadIdx.x] = shared_memory<float>()[threadIdx.x];
}

__global__ void with_a_static_array(float* out) {
  begin_kernel();
  QIAO_SHARED(float, own, 32);
  own[threadIdx.x] = 1;
  out[threadIdx.x] = own[threadIdx.x];
}
__global__ void with_a_large_static_array() {
  begin_kernel();
  QIAO_SHARED(float, own, 4096 + 256);
  own[threadIdx.x] = 1;
}

TEST_F(CudaStandInTest, SharedMemoryHasItsLimits) {
  EXPECT_THAT(run(nothing, 1, 32, 227 * 1024 + 1), HasSubstr("bytes of shared memory"));
  stand_in::reset();
  EXPECT_EQ(run(nothing, 1, 32, 227 * 1024), "");
  EXPECT_THAT(run(nothing, 1, 33, 0), HasSubstr("whole warps"));
  stand_in::reset();
  std::array<float, 32> out{};
  EXPECT_EQ(run(read_what_nobody_wrote, 1, 32, 128, out.data()), "");
  EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }));
  EXPECT_THAT(run(overrun, 1, 32, 0), HasSubstr("beyond its end"));
  stand_in::reset();
  // Static arrays take whole kilobytes where there is dynamic memory behind them.
  EXPECT_EQ(run(with_a_static_array, 1, 32, 226 * 1024, out.data()), "");
  EXPECT_THAT(run(with_a_static_array, 1, 32, 226 * 1024 + 16, out.data()),
              HasSubstr("bytes of shared memory"));
  stand_in::reset();
  EXPECT_EQ(run(with_a_large_static_array, 1, 32, 31 * 1024), "");
  EXPECT_THAT(run(with_a_large_static_array, 1, 32, 32 * 1024), HasSubstr("at most 49152"));
}

__global__ void copied(const float* in, float* out, bool wait) {
  begin_kernel();
  auto* tile = shared_memory<float>();
  copy_async<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);
  copy_async_commit();
  copy_async<16>(tile + 128 + 4 * threadIdx.x, in, false);
  copy_async_commit();
  if (wait) copy_async_wait<1>();
  out[threadIdx.x] = tile[4 * threadIdx.x + 1];
  out[32 + threadIdx.x] = tile[128 + 4 * threadIdx.x + 1];
  copy_async_wait<0>();
  out[64 + threadIdx.x] = tile[128 + 4 * threadIdx.x + 1];
}
__global__ void copied_and_left(const float* in) {
  begin_kernel();
  copy_async<16>(shared_memory<float>(), in);
  copy_async_commit();
}
__global__ void copied_askew(const float* in) {
  begin_kernel();
  copy_async<16>(shared_memory<float>() + 1, in);
}

TEST_F(CudaStandInTest, AnAsynchronousCopyArrivesWhenItIsWaitedFor) {
  alignas(16) std::array<float, 128> in;
  std::array<float, 96> out{};
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  EXPECT_EQ(run(copied, 1, 32, 1024, in.data(), out.data(), true), "");
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(out[i], static_cast<float>(4 * i + 1));
    EXPECT_TRUE(std::isnan(out[32 + i]));  // the group that may still be on its way
    EXPECT_EQ(out[64 + i], 0.0f);
  }
  EXPECT_EQ(run(copied, 1, 32, 1024, in.data(), out.data(), false), "");
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_THAT(run(copied_and_left, 1, 32, 1024, in.data()), HasSubstr("not waited for"));
  stand_in::reset();
  EXPECT_THAT(run(copied_askew, 1, 32, 1024, in.data()), HasSubstr("not aligned"));
}

// D = A B of one warp: A [16, K] and B^T [8, K] of 16-bit elements row-major, through shared memory.
__global__ void product_bf16(const uint16_t* a, const uint16_t* b, float* d) {
  begin_kernel();
  QIAO_SHARED(uint16_t, of_a, 16 * 16);
  QIAO_SHARED(uint16_t, of_b, 8 * 16);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 16 * 16; i += 32) of_a[i] = a[i];
  for (unsigned i = lane; i < 8 * 16; i += 32) of_b[i] = b[i];
  __syncwarp();
  uint32_t left[4], right[2];
  load_matrices(left, of_a + lane % 16 * 16 + lane / 16 * 8);
  load_matrices(right, of_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  float sum[4] = {1, 2, 3, 4};
  multiply_add_bf16(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// The same with B [K, 8] row-major, transposed as it is loaded, in F16.
__global__ void product_f16_transposed(const uint16_t* a, const uint16_t* b, float* d) {
  begin_kernel();
  QIAO_SHARED(uint16_t, of_a, 16 * 16);
  QIAO_SHARED(uint16_t, of_b, 16 * 8);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 16 * 16; i += 32) of_a[i] = a[i];
  for (unsigned i = lane; i < 16 * 8; i += 32) of_b[i] = b[i];
  __syncwarp();
  uint32_t left[4], right[2];
  load_matrices(left, of_a + lane % 16 * 16 + lane / 16 * 8);
  load_matrices_transposed(right, of_b + lane % 16 * 8);
  float sum[4] = {1, 2, 3, 4};
  multiply_add_f16(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

TEST_F(CudaStandInTest, ProductsOf16BitsAreThoseOfPlainLoops) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const bool half : {false, true}) {
    std::array<uint16_t, 256> a;
    std::array<uint16_t, 128> b;  // [8, 16], or [16, 8]
    const auto code = [&](float x) { return half ? float_to_f16(x) : float_to_bf16(x); };
    const auto value = [&](uint16_t x) { return half ? f16_to_float(x) : bf16_to_float(x); };
    for (uint16_t& x : a) x = code(normal(random));
    for (uint16_t& x : b) x = code(normal(random));
    std::array<float, 128> d{};
    EXPECT_EQ(run(half ? product_f16_transposed : product_bf16, 1, 32, 0, a.data(), b.data(), d.data()), "");
    for (size_t row = 0; row < 16; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        double sum = static_cast<double>(row / 8 * 2 + column % 2 + 1), size = sum;
        for (size_t k = 0; k < 16; ++k) {
          const double product = static_cast<double>(value(a[row * 16 + k])) *
                                 static_cast<double>(value(b[half ? k * 8 + column : column * 16 + k]));
          sum += product, size += std::abs(product);
        }
        EXPECT_NEAR(d[row * 8 + column], sum, size * 0x1p-22);
      }
    }
  }
}

// Fragments of 8-bit elements straight from global memory: A [16, 32], B^T [8, 32].
enum class Bytes { kWhole, kHalves, kFloats };
template <Bytes kKind>
__global__ void product_of_bytes(const uint8_t* a, const uint8_t* b, float* d) {
  begin_kernel();
  const unsigned group = threadIdx.x / 4, j = threadIdx.x % 4;
  const auto word = [](const uint8_t* at) {
    return at[0] | at[1] << 8 | at[2] << 16 | static_cast<uint32_t>(at[3]) << 24;
  };
  const uint32_t left[4] = {word(a + group * 32 + 4 * j), word(a + (group + 8) * 32 + 4 * j),
                            word(a + group * 32 + 16 + 4 * j), word(a + (group + 8) * 32 + 16 + 4 * j)};
  const uint32_t right[2] = {word(b + group * 32 + 4 * j), word(b + group * 32 + 16 + 4 * j)};
  float sum[4] = {};
  if constexpr (kKind == Bytes::kFloats) {
    multiply_add_e4m3(sum, left, right);
  } else {
    int whole[4] = {};
    if constexpr (kKind == Bytes::kHalves) {
      const int from[4] = {100, 200, 300, 400};
      const uint32_t first[2] = {left[0], left[1]}, rest[2] = {left[2], left[3]};
      int half[4];
      multiply_add_s8(half, from, first, right[0]);
      multiply_add_s8(whole, half, rest, right[1]);
      for (int i = 0; i < 4; ++i) whole[i] -= from[i];
    } else {
      multiply_add_s8(whole, left, right);
    }
    for (int i = 0; i < 4; ++i) sum[i] = static_cast<float>(whole[i]);
  }
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + j * 2 + i % 2] = sum[i];
}

TEST_F(CudaStandInTest, ProductsOf8BitsAreThoseOfPlainLoops) {
  std::mt19937 random(2);
  std::array<uint8_t, 512> a;
  std::array<uint8_t, 256> b;
  for (const Bytes kind : {Bytes::kWhole, Bytes::kHalves, Bytes::kFloats}) {
    const bool floats = kind == Bytes::kFloats;
    const auto value = [&](uint8_t x) {
      return floats ? float_of_e4m3(x) : static_cast<float>(static_cast<int8_t>(x));
    };
    const auto draw = [&] {
      for (;;) {
        const auto x = static_cast<uint8_t>(random());
        if (!std::isnan(value(x))) return x;
      }
    };
    for (uint8_t& x : a) x = draw();
    for (uint8_t& x : b) x = draw();
    std::array<float, 128> d{};
    const auto kernel = floats                   ? product_of_bytes<Bytes::kFloats>
                        : kind == Bytes::kHalves ? product_of_bytes<Bytes::kHalves>
                                                 : product_of_bytes<Bytes::kWhole>;
    EXPECT_EQ(run(kernel, 1, 32, 0, a.data(), b.data(), d.data()), "");
    for (size_t row = 0; row < 16; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        double sum = 0, size = 0;
        for (size_t k = 0; k < 32; ++k) {
          const double product = static_cast<double>(value(a[row * 32 + k]) * value(b[column * 32 + k]));
          sum += product, size += std::abs(product);
        }
        EXPECT_NEAR(d[row * 8 + column], sum, floats ? size * 0x1p-23 : 0);
      }
    }
  }
}

TEST_F(CudaStandInTest, PowersOfTwoAreFlushed) {
  EXPECT_EQ(exp2_flushed(3.0f), 8.0f);
  EXPECT_EQ(exp2_flushed(-126.0f), 0x1p-126f);
  EXPECT_EQ(exp2_flushed(-127.0f), 0.0f);
  EXPECT_EQ(exp2_flushed(-INFINITY), 0.0f);
  EXPECT_TRUE(std::isnan(exp2_flushed(NAN)));
}

// E4M3 by its definition (OCP 8-bit floating point): 1.m * 2^(e - 7), no infinities, 448 the largest.
TEST_F(CudaStandInTest, E4M3RoundsToNearestEven) {
  EXPECT_EQ(float_of_e4m3(0x7e), 448.0f);
  EXPECT_TRUE(std::isnan(float_of_e4m3(0x7f)));
  EXPECT_EQ(float_of_e4m3(0x01), 0x1p-9f);
  EXPECT_EQ(float_of_e4m3(0xb8), -1.0f);
  EXPECT_EQ(e4m3_of(1000.0f), 0x7e);
  EXPECT_EQ(e4m3_of(-1.0f), 0xb8);
  EXPECT_EQ(e4m3_of(1.0625f), 0x38);  // half way between 1 and 1.125: the even one
  EXPECT_EQ(e4m3_of(1.1875f), 0x3a);  // half way between 1.125 and 1.25
  for (int code = 0; code < 0x7f; ++code) EXPECT_EQ(e4m3_of(float_of_e4m3(static_cast<uint8_t>(code))), code);
}

// 1 + 2^-7 times 1.5 is half way between two numbers; the least of all times 2^120 is a normal one.
TEST_F(CudaStandInTest, ProductsOfBf16RoundToNearestEven) {
  EXPECT_EQ(multiply_bf16(0x00013f81, 0x7b803fc0), 0x39003fc2u);
  EXPECT_EQ(multiply_bf16(0x80017fc0, 0x7b803f80) & 0xffff7fffu, 0xb9007fc0u);  // a NaN stays one
}

__global__ void in_turns(int* order) {
  begin_kernel();
  // Two warps that hand over to each other at named barriers.
  const bool first = threadIdx.x < 32;
  for (int turn = 0; turn < 4; ++turn) {
    if (first) {
      if (threadIdx.x == 0) order[2 * turn] = 2 * turn;
      barrier_arrive(1, 64);
      barrier_sync(2, 64);
    } else {
      barrier_sync(1, 64);
      if (threadIdx.x == 32) order[2 * turn + 1] = order[2 * turn] + 1;
      barrier_arrive(2, 64);
    }
  }
}

TEST_F(CudaStandInTest, NamedBarriersHandOver) {
  std::array<int, 8> order;
  order.fill(-100);
  EXPECT_EQ(run(in_turns, 1, 64, 0, order.data()), "");
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

}  // namespace
}  // namespace qiao::cuda
