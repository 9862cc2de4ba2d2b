// The stand-in's mbarriers, bulk copies and wgmma against plain loops; and that it finds what a device leaves
// undefined.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "backend/cuda/kernel.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/error.h"

namespace qiao::cuda {
namespace {

using ::testing::HasSubstr;

class CudaStandInHopperTest : public ::testing::Test {
 protected:
  CudaStandInHopperTest() { stand_in::reset(); }

  // Runs `kernel` and gives what the waiting call threw; empty where nothing went wrong.
  template <class... P, class... A>
  static std::string run(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
    stand_in::reset();
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

// Pieces of 32 floats through a ring of two slots: one warp brings them, the other adds them up.
struct Pieces {
  const float* in;
  float* out;
  int count;
  bool wait_full, wait_empty;
};
__global__ void add_pieces(Pieces op) {
  begin_kernel();
  auto* slots = shared_memory<float>();
  auto* arrivals = reinterpret_cast<uint64_t*>(slots + 64);  // [slot][full, empty]
  const bool brings = threadIdx.x >= 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) arrivals_init(arrivals + 2 * i, 1), arrivals_init(arrivals + 2 * i + 1, 32);
    arrivals_ready();
  }
  __syncthreads();
  float sum = 0;
  // Without a look at who has read a slot, all is brought before anything is read.
  if (!op.wait_empty && !brings) barrier_sync(1, 64);
  for (int i = 0; i < op.count; ++i) {
    uint64_t* full = arrivals + i % 2 * 2;
    const auto parity = static_cast<uint32_t>(i / 2 % 2);
    if (!brings) {
      if (op.wait_full) wait_arrivals(full, parity);
      sum += slots[i % 2 * 32 + threadIdx.x];
      arrive(full + 1);
    } else {
      if (op.wait_empty) wait_arrivals(full + 1, parity ^ 1);
      if (threadIdx.x == 32) arrive_expecting(full, 128);
      copy_bulk(slots + i % 2 * 32, op.in + i * 32, 64, full);
      copy_bulk(slots + i % 2 * 32 + 16, op.in + i * 32 + 16, 64, full);
    }
  }
  if (!op.wait_empty && brings) barrier_sync(1, 64);
  if (!brings) op.out[threadIdx.x] = sum;
}

TEST_F(CudaStandInHopperTest, BulkCopiesArriveWithThePhaseThatExpectsThem) {
  std::vector<float> in(7 * 32), out(32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  EXPECT_EQ(run(add_pieces, 1, 64, 512, Pieces{in.data(), out.data(), 7, true, true}), "");
  for (size_t lane = 0; lane < 32; ++lane) EXPECT_EQ(out[lane], static_cast<float>(7 * lane + 21 * 32));
  EXPECT_EQ(run(add_pieces, 1, 64, 512, Pieces{in.data(), out.data(), 1, true, true}), "");
  EXPECT_NE(run(add_pieces, 1, 64, 512, Pieces{in.data(), out.data(), 1, false, true}), "");
  EXPECT_TRUE(std::isnan(out[0]));  // not waited for: not there
  EXPECT_EQ(run(add_pieces, 1, 64, 512, Pieces{in.data(), out.data(), 2, true, false}), "");
  EXPECT_EQ(out[0], 32.0f);
  // The slot's second phase has ended before the first was looked at: as if neither had.
  EXPECT_THAT(run(add_pieces, 1, 64, 512, Pieces{in.data(), out.data(), 3, true, false}),
              HasSubstr("wait for ever"));
}

// The same by copy_async; with `own_wait` who brings a slot also waits for its groups, to no use for others.
struct Copied {
  const float* in;
  float* out;
  int count;
  bool wait_full, own_wait;
};
__global__ void add_copied(Copied op) {
  begin_kernel();
  auto* slots = shared_memory<float>();
  auto* arrivals = reinterpret_cast<uint64_t*>(slots + 64);  // [slot][full, empty]
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 4; ++i) arrivals_init(arrivals + i, 32);
    arrivals_ready();
  }
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < op.count; ++i) {
    uint64_t* full = arrivals + i % 2 * 2;
    const auto parity = static_cast<uint32_t>(i / 2 % 2);
    if (threadIdx.x < 32) {
      if (op.wait_full) wait_arrivals(full, parity);
      sum += slots[i % 2 * 32 + 31 - lane];
      arrive(full + 1);
    } else {
      wait_arrivals(full + 1, parity ^ 1);
      copy_async<4>(slots + i % 2 * 32 + lane, op.in + i * 32 + lane, lane != 3);
      if (op.own_wait) copy_async_commit();
      arrive_with_copies(full);
      if (op.own_wait) copy_async_wait<0>();
    }
  }
  if (threadIdx.x < 32) op.out[lane] = sum;
}

TEST_F(CudaStandInHopperTest, CopiesArriveWithThePhaseThatCountsThem) {
  std::vector<float> in(7 * 32), out(32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  for (const bool own_wait : {false, true}) {
    EXPECT_EQ(run(add_copied, 1, 64, 512, Copied{in.data(), out.data(), 7, true, own_wait}), "");
    for (size_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(out[31 - lane], lane == 3 ? 0.0f : static_cast<float>(7 * lane + 21 * 32));
    }
    EXPECT_NE(run(add_copied, 1, 64, 512, Copied{in.data(), out.data(), 1, false, own_wait}), "");
    EXPECT_TRUE(std::isnan(out[0]));
  }
}

__global__ void askew(const float* in) {
  begin_kernel();
  auto* slots = shared_memory<float>();
  auto* arrivals = reinterpret_cast<uint64_t*>(slots + 64);
  if (threadIdx.x == 0) arrivals_init(arrivals, 1);
  copy_bulk(slots + 1, in, 16, arrivals);
}
__global__ void not_made() {
  begin_kernel();
  if (threadIdx.x == 0) arrive(shared_memory<uint64_t>());
}
__global__ void one_too_many() {
  begin_kernel();
  if (threadIdx.x != 0) return;
  arrivals_init(shared_memory<uint64_t>(), 1);
  arrive_expecting(shared_memory<uint64_t>(), 16);
  arrive(shared_memory<uint64_t>());
}
__global__ void never_comes() {
  begin_kernel();
  if (threadIdx.x != 0) return;
  arrivals_init(shared_memory<uint64_t>(), 1);
  arrive_expecting(shared_memory<uint64_t>(), 16);
  wait_arrivals(shared_memory<uint64_t>(), 0);
}

TEST_F(CudaStandInHopperTest, MbarriersThatAreWronglyUsedAreFound) {
  alignas(16) const float in[8] = {};
  EXPECT_THAT(run(askew, 1, 32, 512, &in[0]), HasSubstr("multiples of 16"));
  EXPECT_THAT(run(not_made, 1, 32, 512), HasSubstr("nobody has made"));
  EXPECT_THAT(run(one_too_many, 1, 32, 512), HasSubstr("beyond those"));
  EXPECT_THAT(run(never_comes, 1, 32, 512), HasSubstr("an mbarrier"));
}

enum class Mistake {
  kNone,
  kNoFence,
  kReadsEarly,
  kWritesEarly,
  kWritesA,
  kNeverWaits,
  kOneWarpLess,
  kCopiesUnshown
};

// D[64, N] of each of two warpgroups: 1 + A[64, 32] B[32, N], in two steps of a group each. A row-major from
// device memory, B^T [N, 64] through shared memory, of which columns 16 to 47 count.
template <int kColumns>
__global__ void product_of_warpgroups(const uint16_t* a, const uint16_t* b, float* d, Mistake mistake) {
  begin_kernel();
  auto* rows = shared_memory<uint16_t>();
  auto* arrivals = reinterpret_cast<uint64_t*>(rows + kColumns * 64);
  if (threadIdx.x == 0) {
    arrivals_init(arrivals, 1);
    arrivals_ready();
  }
  __syncthreads();
  if (threadIdx.x == 0) arrive_expecting(arrivals, kColumns * 128);
  if (threadIdx.x < 32) {
    for (int row = 0; row < kColumns; ++row) {
      for (int piece = 0; piece < 8; ++piece) {
        copy_bulk(rows + row * 64 + (piece ^ row % 8) * 8, b + row * 64 + piece * 8, 16, arrivals);
      }
    }
  }
  wait_arrivals(arrivals, 0);
  if (mistake == Mistake::kCopiesUnshown) {
    if (threadIdx.x == 0) arrivals_init(arrivals + 1, blockDim.x);
    __syncthreads();
    const unsigned row = threadIdx.x / 8, piece = threadIdx.x % 8;
    copy_async<16>(rows + row * 64 + (piece ^ row % 8) * 8, b + row * 64 + piece * 8);
    arrive_with_copies(arrivals + 1);
    wait_arrivals(arrivals + 1, 0);
  }
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint16_t* own = a + (warp * 16 + lane / 4) * 32 + lane % 4 * 2;
  const auto two = [&](int row, int k) { return own[row * 32 + k] | uint32_t{own[row * 32 + k + 1]} << 16; };
  float sum[kColumns / 2];
  for (float& s : sum) s = 1;
  if (mistake != Mistake::kNoFence) multiply_begin();
  uint32_t left[2][4];
  for (int step = 0; step < 2; ++step) {
    const int k = step * 16;
    left[step][0] = two(0, k), left[step][1] = two(8, k);
    left[step][2] = two(0, k + 8), left[step][3] = two(8, k + 8);
    if (mistake != Mistake::kOneWarpLess || warp != 2) {
      multiply_async(sum, left[step], multiply_operand(rows, step + 1));
    }
    multiply_commit();
  }
  if (mistake == Mistake::kWritesA) left[1][2] ^= 1;
  if (mistake != Mistake::kNeverWaits) {
    if (mistake == Mistake::kWritesEarly) {
      __syncthreads();
      rows[threadIdx.x % 64] = 0x7fc0;
    }
    multiply_wait<1>(sum);
    if (mistake != Mistake::kReadsEarly) multiply_wait<0>(sum);
  }
  for (int i = 0; i < kColumns / 2; ++i) {
    const unsigned row = warp * 16 + lane / 4 + static_cast<unsigned>(i % 4 / 2 * 8);
    d[row * kColumns + static_cast<unsigned>(i / 4 * 8 + i % 2) + lane % 4 * 2] = sum[i];
  }
  if (mistake == Mistake::kReadsEarly) multiply_wait<0>(sum);
}

template <int kColumns>
struct WarpgroupProduct {
  std::vector<uint16_t> a = std::vector<uint16_t>(128 * 32), b = std::vector<uint16_t>(kColumns * 64 + 8);
  std::vector<float> d = std::vector<float>(128 * kColumns);
  const uint16_t* aligned_b = b.data() + (16 - reinterpret_cast<uintptr_t>(b.data()) % 16) % 16 / 2;

  WarpgroupProduct() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (uint16_t& x : a) x = float_to_bf16(normal(random));
    for (uint16_t& x : b) x = float_to_bf16(normal(random));
  }
  void expect_products() const {
    for (size_t row = 0; row < 128; ++row) {
      for (size_t column = 0; column < kColumns; ++column) {
        double sum = 1, size = 1;
        for (size_t k = 0; k < 32; ++k) {
          const double product = static_cast<double>(bf16_to_float(a[row * 32 + k])) *
                                 static_cast<double>(bf16_to_float(aligned_b[column * 64 + 16 + k]));
          sum += product, size += std::abs(product);
        }
        ASSERT_NEAR(d[row * kColumns + column], sum, size * 0x1p-22) << row << " " << column;
      }
    }
  }
};

TEST_F(CudaStandInHopperTest, ProductsOfWarpgroupsAreThoseOfPlainLoops) {
  const auto check = [&]<int kColumns>(WarpgroupProduct<kColumns> product) {
    EXPECT_EQ(run(product_of_warpgroups<kColumns>, 1, 256, kColumns * 128 + 8, product.a.data(),
                  product.aligned_b, product.d.data(), Mistake::kNone),
              "");
    product.expect_products();
  };
  check(WarpgroupProduct<8>());
  check(WarpgroupProduct<16>());
  check(WarpgroupProduct<32>());
  check(WarpgroupProduct<64>());
  check(WarpgroupProduct<128>());
  check(WarpgroupProduct<256>());
}

// D[64, N] = A[64, 64] B[64, N] of E4M3, in two steps. A row-major from device memory; B^T [N, 64] through
// shared memory, as rows of 128 bytes of which bytes 32 to 95 count, or as pieces of `tokens` rows.
template <int kColumns>
__global__ void product_of_e4m3(const uint8_t* a, const uint8_t* b, float* d, int tokens, bool says) {
  begin_kernel();
  auto* rows = shared_memory<uint8_t>();
  for (int i = static_cast<int>(threadIdx.x); i < tokens * 64; i += 128) {
    const int row = i / 64, at = i % 64, piece = at / 16 + 2;
    rows[kColumns == 8 ? (at / 16 * tokens + row) * 16 + at % 16
                       : row * 128 + (piece ^ row % 8) * 16 + at % 16] = b[i];
  }
  if (says) multiply_stored();
  __syncthreads();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum[kColumns / 2];
  for (float& s : sum) s = 1;  // is written, not added to
  multiply_begin();
  uint32_t left[2][4];
  for (int step = 0; step < 2; ++step) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = warp * 16 + lane / 4 + i % 2 * 8;
      left[step][i] =
          *reinterpret_cast<const uint32_t*>(a + row * 64 + step * 32 + i / 2 * 16 + lane % 4 * 4);
    }
    multiply_async_e4m3(sum, left[step],
                        kColumns == 8 ? multiply_operand_of_pieces(rows + step * tokens * 32, tokens * 16)
                                      : multiply_operand(rows, step + 1),
                        step != 0);
  }
  multiply_commit();
  multiply_wait<0>(sum);
  for (int i = 0; i < kColumns / 2; ++i) {
    const unsigned row = warp * 16 + lane / 4 + static_cast<unsigned>(i % 4 / 2 * 8);
    d[row * kColumns + static_cast<unsigned>(i / 4 * 8 + i % 2) + lane % 4 * 2] = sum[i];
  }
}

// What is left of a sum where addends are cut off 13 bits below the largest.
float cut_sum(float so_far, const uint8_t* a, const uint8_t* b) {
  std::vector<double> addends{static_cast<double>(so_far)};
  for (int k = 0; k < 32; ++k) {
    addends.push_back(static_cast<double>(float_of_e4m3(a[k])) * static_cast<double>(float_of_e4m3(b[k])));
  }
  double largest = 0, sum = 0;
  for (const double x : addends) largest = std::max(largest, std::abs(x));
  const double unit = largest == 0 ? 1 : std::ldexp(1.0, std::ilogb(largest) - 13);
  for (const double x : addends) sum += std::trunc(x / unit) * unit;
  return static_cast<float>(sum);
}

template <int kColumns>
void expect_products_of_e4m3(int tokens, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b,
                             const std::vector<float>& d) {
  int cut = 0;
  for (size_t row = 0; row < 64; ++row) {
    for (size_t column = 0; column < static_cast<size_t>(tokens); ++column) {
      const uint8_t *left = a.data() + row * 64, *right = b.data() + column * 64;
      double exact = 0;
      for (size_t k = 0; k < 64; ++k) {
        exact += static_cast<double>(float_of_e4m3(left[k])) * static_cast<double>(float_of_e4m3(right[k]));
      }
      const float expected = cut_sum(cut_sum(0, left, right), left + 32, right + 32);
      ASSERT_EQ(d[row * kColumns + column], expected) << row << " " << column;
      cut += static_cast<double>(expected) != exact;
    }
  }
  EXPECT_GT(cut, 64 * tokens / 2);  // the model is not that of an exact sum
}

TEST_F(CudaStandInHopperTest, ProductsOfE4m3LoseWhatIsFarBelowTheLargest) {
  std::mt19937 random(4);
  const auto check = [&]<int kColumns>(std::integral_constant<int, kColumns>, int tokens) {
    std::vector<uint8_t> a(64 * 64), b(static_cast<size_t>(tokens * 64));
    for (auto* bytes : {&a, &b}) {
      for (uint8_t& x : *bytes) {
        do x = static_cast<uint8_t>(random());
        while ((x & 0x7f) == 0x7f);
      }
    }
    std::vector<float> d(64 * kColumns);
    EXPECT_EQ(
        run(product_of_e4m3<kColumns>, 1, 128, kColumns * 128, a.data(), b.data(), d.data(), tokens, true),
        "");
    expect_products_of_e4m3<kColumns>(tokens, a, b, d);
    EXPECT_THAT(
        run(product_of_e4m3<kColumns>, 1, 128, kColumns * 128, a.data(), b.data(), d.data(), tokens, false),
        HasSubstr("without multiply_stored"));
  };
  for (const int tokens : {1, 3, 8}) check(std::integral_constant<int, 8>(), tokens);
  check(std::integral_constant<int, 16>(), 16);
  check(std::integral_constant<int, 32>(), 32);
  check(std::integral_constant<int, 64>(), 64);
  check(std::integral_constant<int, 128>(), 128);
}

// D[64, N] = A[64, 32] B[32, N], in two steps, A row-major from device memory, B [32, N] by rows of 64
// columns through shared memory, the next 64's behind them, added to 1.
template <int kColumns, bool kF16>
__global__ void product_of_columns(const uint16_t* a, const uint16_t* b, float* d, int askew) {
  begin_kernel();
  constexpr int kApart = 32 * 128;
  auto* rows = shared_memory<uint8_t>();
  for (int i = static_cast<int>(threadIdx.x); i < 32 * kColumns; i += 128) {
    const int k = i / kColumns, n = i % kColumns, piece = n % 64 / 8;
    uint8_t* to = rows + n / 64 * kApart + k * 128 + (piece ^ k % 8) * 16 + n % 8 * 2;
    *reinterpret_cast<uint16_t*>(to) = b[i];
  }
  multiply_stored();
  __syncthreads();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint16_t* own = a + (warp * 16 + lane / 4) * 32 + lane % 4 * 2;
  const auto two = [&](int row, int k) { return own[row * 32 + k] | uint32_t{own[row * 32 + k + 1]} << 16; };
  float sum[kColumns / 2];
  for (float& s : sum) s = 1;
  multiply_begin();
  const uint32_t left[2][4] = {{two(0, 0), two(8, 0), two(0, 8), two(8, 8)},
                               {two(0, 16), two(8, 16), two(0, 24), two(8, 24)}};
  for (int step = 0; step < 2; ++step) {
    const uint64_t right = multiply_operand_of_columns(rows + step * 2048 + askew, kApart);
    if constexpr (kF16) {
      multiply_async_f16_of_columns(sum, left[step], right);
    } else {
      multiply_async_bf16_of_columns(sum, left[step], right);
    }
  }
  multiply_commit();
  multiply_wait<0>(sum);
  for (int i = 0; i < kColumns / 2; ++i) {
    const unsigned row = warp * 16 + lane / 4 + static_cast<unsigned>(i % 4 / 2 * 8);
    d[row * kColumns + static_cast<unsigned>(i / 4 * 8 + i % 2) + lane % 4 * 2] = sum[i];
  }
}

template <int kColumns, bool kF16>
std::string expect_products_of_columns(
    const std::function<std::string(const uint16_t*, const uint16_t*, float*)>& run) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> a(64 * 32), b(32 * kColumns);
  for (auto* values : {&a, &b}) {
    for (uint16_t& x : *values) x = kF16 ? float_to_f16(normal(random)) : float_to_bf16(normal(random));
  }
  std::vector<float> d(64 * kColumns);
  const std::string error = run(a.data(), b.data(), d.data());
  const auto number = [](uint16_t x) {
    return static_cast<double>(kF16 ? f16_to_float(x) : bf16_to_float(x));
  };
  for (size_t row = 0; row < 64 && error.empty(); ++row) {
    for (size_t column = 0; column < kColumns; ++column) {
      double sum = 1, size = 1;
      for (size_t k = 0; k < 32; ++k) {
        const double product = number(a[row * 32 + k]) * number(b[k * kColumns + column]);
        sum += product, size += std::abs(product);
      }
      EXPECT_NEAR(d[row * kColumns + column], sum, size * 0x1p-22) << row << " " << column;
    }
  }
  return error;
}

TEST_F(CudaStandInHopperTest, RowsOfBAreMultipliedAsThoseOfItsTranspose) {
  const auto check = [&]<int kColumns, bool kF16>(std::integral_constant<int, kColumns>,
                                                  std::bool_constant<kF16>, int askew) {
    return expect_products_of_columns<kColumns, kF16>([&](const uint16_t* a, const uint16_t* b, float* d) {
      return run(product_of_columns<kColumns, kF16>, 1, 128, 16 * 1024, a, b, d, askew);
    });
  };
  EXPECT_EQ(check(std::integral_constant<int, 64>(), std::false_type(), 0), "");
  EXPECT_EQ(check(std::integral_constant<int, 64>(), std::true_type(), 0), "");
  EXPECT_EQ(check(std::integral_constant<int, 128>(), std::false_type(), 0), "");
  EXPECT_EQ(check(std::integral_constant<int, 128>(), std::true_type(), 0), "");
  EXPECT_THAT(check(std::integral_constant<int, 64>(), std::false_type(), 128),
              HasSubstr("multiple of 1024"));
}

// Threads of a half say something in turn; each hears of its own half alone.
__global__ void any_of_halves(int* out) {
  begin_kernel();
  const int half = static_cast<int>(threadIdx.x / 64);
  int heard = 0;
  for (int i = 0; i < 8; ++i) {
    const bool says = half == 0 ? i % 3 == 1 && threadIdx.x == 37 : i == 2;
    if (barrier_any(1 + half, 64, says)) heard |= 1 << i;
  }
  out[threadIdx.x] = heard;
}
TEST_F(CudaStandInHopperTest, BarriersTellWhetherAnyThreadSaysSo) {
  std::vector<int> out(128);
  EXPECT_EQ(run(any_of_halves, 1, 128, 0, out.data()), "");
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(out[i], 0b10010010) << i;
  for (size_t i = 64; i < 128; ++i) EXPECT_EQ(out[i], 0b100) << i;
}

TEST_F(CudaStandInHopperTest, ProductsThatAreNotWaitedForShow) {
  WarpgroupProduct<64> product;
  const auto with = [&](Mistake mistake) {
    return run(product_of_warpgroups<64>, 1, 128, 64 * 128 + 16, product.a.data(), product.aligned_b,
               product.d.data(), mistake);
  };
  EXPECT_THAT(with(Mistake::kNoFence), HasSubstr("without a fence"));
  EXPECT_THAT(with(Mistake::kNeverWaits), HasSubstr("not waited for"));
  EXPECT_THAT(with(Mistake::kOneWarpLess), HasSubstr("some warps of a warpgroup alone"));
  EXPECT_THAT(with(Mistake::kWritesA), HasSubstr("written before"));
  EXPECT_THAT(with(Mistake::kCopiesUnshown), HasSubstr("were copied"));
  EXPECT_EQ(with(Mistake::kReadsEarly), "");
  EXPECT_TRUE(std::isnan(product.d[0]));
  EXPECT_EQ(with(Mistake::kWritesEarly), "");
  EXPECT_TRUE(std::isnan(product.d[0]));  // row 0 of B^T was overwritten
  EXPECT_FALSE(std::isnan(product.d[1]));
}

}  // namespace
}  // namespace qiao::cuda
