// The stand-in of src/backend/cuda/instructions.h: the same functions, by plain loops over what the lanes of
// a warp hand over. Products are summed in float64 and added to the accumulator with one rounding, where a
// device's order and rounding inside an instruction are its own.
#pragma once

#include <tuple>
#include <utility>

#include "backend/cuda_stand_in/cuda_bf16.h"
#include "backend/cuda_stand_in/cuda_fp16.h"
#include "backend/cuda_stand_in/cuda_runtime.h"

namespace qiao::stand_in {

cudaError_t launch(std::function<void()> kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, bool early);

}  // namespace qiao::stand_in

namespace qiao::cuda {

template <class... P>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, bool early, std::tuple<P...>& arguments) {
  return stand_in::launch([kernel, arguments] { std::apply(kernel, arguments); }, grid, block, shared_bytes,
                          stream, early);
}

inline void wait_for_previous() { stand_in::begin_thread(); }
inline void let_next_begin() {}
inline void prefetch(const void*) {}
inline void begin_kernel() { wait_for_previous(); }

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(stand_in::dynamic_shared());
}

#define QIAO_SHARED(type, name, count)                                                                       \
  static const char name##_key = 0;                                                                          \
  auto& name = *static_cast<type(*)[count]>(                                                                 \
      ::qiao::stand_in::static_shared(&name##_key, sizeof(type[count]), std::max<size_t>(16, alignof(type)), \
                                      std::source_location::current()))

#define QIAO_NO_INLINE __attribute__((noinline))

// Where wrappers below were called.
using Caller = std::source_location;

template <int kBytes>
void copy_async(void* shared, const void* global, bool valid = true, Caller where = Caller::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  stand_in::copy_async(shared, global, kBytes, !valid, where);
}
inline void copy_async_commit() { stand_in::commit_copies(); }
template <int kGroupsLeft>
void copy_async_wait() {
  stand_in::wait_copies(kGroupsLeft);
}

inline unsigned add_released(unsigned* at, unsigned value) { return atomicAdd(at, value); }
inline void acquire() {}

inline void barrier_sync(int id, int threads, Caller where = Caller::current()) {
  stand_in::barrier(id, static_cast<unsigned>(threads), true, where);
}
inline void barrier_arrive(int id, int threads, Caller where = Caller::current()) {
  stand_in::barrier(id, static_cast<unsigned>(threads), false, where);
}
inline bool barrier_any(int id, int threads, bool says, Caller where = Caller::current()) {
  return stand_in::barrier_any(id, static_cast<unsigned>(threads), says, where);
}

namespace matrices {

struct Load {
  const void* row;
  uint32_t* out;
};

template <int kCount, bool kTransposed>
void load(uint32_t* out, const void* row, const char* what, const Caller& where) {
  if (stand_in::lane() < 8 * kCount &&
      (!stand_in::in_shared(row, 16) || reinterpret_cast<uintptr_t>(row) % 16 != 0)) {
    stand_in::fault(where, "ldmatrix of a row that is not 16 aligned bytes of shared memory");
  }
  Load mine{row, out};
  stand_in::together(
      0xffffffffu, what, &mine,
      [](void* const(&lanes)[32], uint32_t) {
        for (unsigned matrix = 0; matrix < kCount; ++matrix) {
          uint16_t elements[8][8];
          for (unsigned r = 0; r < 8; ++r) {
            std::memcpy(elements[r], static_cast<Load*>(lanes[8 * matrix + r])->row, 16);
          }
          for (unsigned lane = 0; lane < 32; ++lane) {
            const unsigned i = lane / 4, j = lane % 4 * 2;
            const uint16_t low = kTransposed ? elements[j][i] : elements[i][j];
            const uint16_t high = kTransposed ? elements[j + 1][i] : elements[i][j + 1];
            static_cast<Load*>(lanes[lane])->out[matrix] = low | uint32_t{high} << 16;
          }
        }
      },
      where);
}

struct Operands {
  const uint32_t* a;
  const uint32_t* b;
  void* d;
};

// `kPerWord` elements in each 32-bit register; Read gives element i of a word, Sum is the accumulator. Of
// kTiles B and D beside each other.
template <int kPerWord, class D, class Sum, Sum (*kRead)(uint32_t, int), int kTiles = 1>
void multiply(D* d, const uint32_t* a, const uint32_t* b, const char* what, const Caller& where) {
  Operands mine{a, b, d};
  stand_in::together(
      0xffffffffu, what, &mine,
      [](void* const(&lanes)[32], uint32_t) {
        constexpr int kDepth = 8 * kPerWord;
        Sum rows[16][kDepth], columns[8][kDepth];
        const auto read = [&](int lane, const uint32_t* words, int step, Sum(*to)[kDepth]) {
          for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < kPerWord; ++i) {
              to[lane / 4][lane % 4 * kPerWord + half * 4 * kPerWord + i] = kRead(words[half * step], i);
            }
          }
        };
        for (int lane = 0; lane < 32; ++lane) {
          read(lane, static_cast<Operands*>(lanes[lane])->a, 2, rows);
          read(lane, static_cast<Operands*>(lanes[lane])->a + 1, 2, rows + 8);
        }
        for (int tile = 0; tile < kTiles; ++tile) {
          for (int lane = 0; lane < 32; ++lane) {
            read(lane, static_cast<Operands*>(lanes[lane])->b + 2 * tile, 1, columns);
          }
          for (int lane = 0; lane < 32; ++lane) {
            auto* out = static_cast<D*>(static_cast<Operands*>(lanes[lane])->d) + 4 * tile;
            for (int i = 0; i < 4; ++i) {
              const Sum* row = rows[lane / 4 + i / 2 * 8];
              const Sum* column = columns[lane % 4 * 2 + i % 2];
              Sum sum = 0;
              for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
              out[i] = static_cast<D>(static_cast<Sum>(out[i]) + sum);
            }
          }
        }
      },
      where);
}

inline double read_bf16(uint32_t word, int i) {
  return bf16_to_float(static_cast<uint16_t>(word >> (16 * i)));
}
inline double read_f16(uint32_t word, int i) { return f16_to_float(static_cast<uint16_t>(word >> (16 * i))); }
inline int read_s8(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }
inline double read_tf32(uint32_t word, int) { return std::bit_cast<float>(word & 0xffffe000u); }
inline double read_e4m3(uint32_t word, int i) { return e4m3_to_float(static_cast<uint8_t>(word >> (8 * i))); }

}  // namespace matrices

inline void load_matrices(uint32_t (&out)[1], const void* row, Caller where = Caller::current()) {
  matrices::load<1, false>(out, row, "ldmatrix.x1", where);
}
inline void load_matrices(uint32_t (&out)[2], const void* row, Caller where = Caller::current()) {
  matrices::load<2, false>(out, row, "ldmatrix.x2", where);
}
inline void load_matrices(uint32_t (&out)[4], const void* row, Caller where = Caller::current()) {
  matrices::load<4, false>(out, row, "ldmatrix.x4", where);
}
inline void load_matrices_transposed(uint32_t (&out)[1], const void* row, Caller where = Caller::current()) {
  matrices::load<1, true>(out, row, "ldmatrix.x1.trans", where);
}
inline void load_matrices_transposed(uint32_t (&out)[2], const void* row, Caller where = Caller::current()) {
  matrices::load<2, true>(out, row, "ldmatrix.x2.trans", where);
}
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row, Caller where = Caller::current()) {
  matrices::load<4, true>(out, row, "ldmatrix.x4.trans", where);
}

inline void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Caller where = Caller::current()) {
  matrices::multiply<2, float, double, matrices::read_bf16>(d, a, b, "mma.m16n8k16.bf16", where);
}
inline void multiply_add_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Caller where = Caller::current()) {
  matrices::multiply<2, float, double, matrices::read_f16>(d, a, b, "mma.m16n8k16.f16", where);
}
inline void multiply_add_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Caller where = Caller::current()) {
  matrices::multiply<4, int, int, matrices::read_s8>(d, a, b, "mma.m16n8k32.s8", where);
}
inline void multiply_add_s8(int (&d)[4], const int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Caller where = Caller::current()) {
  std::copy(c, c + 4, d);
  multiply_add_s8(d, a, b, where);
}
inline void multiply_add_s8(int (&d)[4], const int (&c)[4], const uint32_t (&a)[2], uint32_t b,
                            Caller where = Caller::current()) {
  const uint32_t wide_a[4] = {a[0], a[1], 0, 0}, wide_b[2] = {b, 0};
  multiply_add_s8(d, c, wide_a, wide_b, where);
}
inline void multiply_add_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Caller where = Caller::current()) {
  matrices::multiply<4, float, double, matrices::read_e4m3>(d, a, b, "mma.m16n8k32.e4m3", where);
}

template <int kTiles>
void multiply_add_tf32(float (*d)[4], const uint32_t (&a)[4], const uint32_t (*b)[2],
                       Caller where = Caller::current()) {
  matrices::multiply<1, float, double, matrices::read_tf32, kTiles>(d[0], a, b[0], "mma.m16n8k8.tf32", where);
}

inline float exp2_flushed(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline float divide_flushed(float a, float b) {
  const auto flushed = [](float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; };
  return flushed(flushed(a) * flushed(1.0f / b));
}

inline uint8_t e4m3_of(float value) { return float_to_e4m3(value); }
inline float float_of_e4m3(uint8_t bits) { return e4m3_to_float(bits); }
inline void unpack_e4m3(uint32_t four, uint32_t& first, uint32_t& second) {
  const auto half = [&](int i) {
    return uint32_t{float_to_f16(e4m3_to_float(static_cast<uint8_t>(four >> (8 * i))))};
  };
  first = half(0) | half(1) << 16, second = half(2) | half(3) << 16;
}

inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
  const auto one = [&](int shift) {
    const auto of = [&](uint32_t pair) { return bf16_to_float(static_cast<uint16_t>(pair >> shift)); };
    return uint32_t{float_to_bf16(of(a) * of(b))} << shift;
  };
  return one(0) | one(16);
}

inline uint32_t shared_address(const void* data) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(data) - stand_in::dynamic_shared());
}

inline void arrivals_init(uint64_t* arrivals, unsigned count, Caller where = Caller::current()) {
  stand_in::arrivals_init(arrivals, count, where);
}
inline void arrivals_ready() {}
inline void arrive(uint64_t* arrivals, Caller where = Caller::current()) {
  stand_in::arrive(arrivals, 0, where);
}
inline void arrive_with_copies(uint64_t* arrivals, Caller where = Caller::current()) {
  stand_in::arrive_with_copies(arrivals, where);
}
inline void arrive_expecting(uint64_t* arrivals, uint32_t bytes, Caller where = Caller::current()) {
  stand_in::arrive(arrivals, bytes, where);
}
inline void wait_arrivals(uint64_t* arrivals, uint32_t parity, Caller where = Caller::current()) {
  stand_in::wait_arrivals(arrivals, parity, where);
}
inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* arrivals,
                      Caller where = Caller::current()) {
  struct Bulk {
    void* shared;
    const void* global;
    uint32_t bytes;
    uint64_t* arrivals;
    Caller where;
  } mine{shared, global, bytes, arrivals, where};
  stand_in::together(
      0xffffffffu, "cp.async.bulk", &mine,
      [](void* const(&lanes)[32], uint32_t) {
        const auto* one = static_cast<Bulk*>(lanes[0]);
        stand_in::copy_bulk(one->shared, one->global, one->bytes, one->arrivals, one->where);
      },
      where);
}

inline uint64_t multiply_operand(const void* rows, int step) {
  const uint64_t address = shared_address(rows) + static_cast<uint32_t>(step) * 32;
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
inline uint64_t multiply_operand_of_pieces(const void* pieces, int apart) {
  return shared_address(pieces) >> 4 | static_cast<uint64_t>(apart >> 4) << 16 | uint64_t{128 >> 4} << 32;
}
inline uint64_t multiply_operand_of_columns(const void* rows, int apart) {
  return shared_address(rows) >> 4 | static_cast<uint64_t>(apart >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
inline uint64_t multiply_operand_behind(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}
inline void multiply_stored() { stand_in::show_to_products(); }
inline void multiply_begin(Caller where = Caller::current()) { stand_in::multiply_begin(where); }
inline void multiply_commit(Caller where = Caller::current()) { stand_in::multiply_commit(where); }
template <int kGroupsLeft, int kCount>
void multiply_wait(float (&)[kCount], Caller where = Caller::current()) {
  stand_in::multiply_wait(kGroupsLeft, where);
}
template <int kCount, int kSteps>
void multiply_wait_and_take(float (&)[kCount], uint32_t (&a)[kSteps][4], const uint32_t (&next)[kSteps][4],
                            Caller where = Caller::current()) {
  stand_in::multiply_wait(0, where);
  std::memcpy(a, next, sizeof a);
}
template <int kCount>
requires(kCount == 4 || kCount == 8 || kCount == 16 || kCount == 32 || kCount == 64 || kCount == 96 ||
         kCount == 128) void multiply_async(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                            Caller where = Caller::current()) {
  stand_in::multiply_async(d, kCount, a, b, {}, where);
}
template <int kCount>
requires(kCount == 4 || kCount == 8 || kCount == 16 || kCount == 32 || kCount == 64 ||
         kCount == 96) void multiply_async_e4m3(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                                bool adds, Caller where = Caller::current()) {
  stand_in::multiply_async(d, kCount, a, b, {stand_in::Multiply::kE4m3, adds}, where);
}
inline void multiply_async_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool adds,
                                Caller where = Caller::current()) {
  stand_in::multiply_async(d, 32, a, b, {stand_in::Multiply::kBf16, adds}, where);
}
inline void multiply_async_f16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool adds,
                               Caller where = Caller::current()) {
  stand_in::multiply_async(d, 32, a, b, {stand_in::Multiply::kF16, adds}, where);
}
template <int kCount>
requires(kCount == 32 || kCount == 64) void multiply_async_bf16_of_columns(float (&d)[kCount],
                                                                           const uint32_t (&a)[4], uint64_t b,
                                                                           Caller where = Caller::current()) {
  stand_in::multiply_async(d, kCount, a, b, {stand_in::Multiply::kBf16, true, true}, where);
}
template <int kCount>
requires(kCount == 32 || kCount == 64) void multiply_async_f16_of_columns(float (&d)[kCount],
                                                                          const uint32_t (&a)[4], uint64_t b,
                                                                          Caller where = Caller::current()) {
  stand_in::multiply_async(d, kCount, a, b, {stand_in::Multiply::kF16, true, true}, where);
}
template <int kRegisters, bool kMore>
void set_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

}  // namespace qiao::cuda
