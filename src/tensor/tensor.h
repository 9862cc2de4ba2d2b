// A view of elements that live elsewhere. The one vocabulary of shapes, used in every comment of the tree:
// T tokens in this step, S sequences, L layers, C model width, F feed-forward width, H query heads, G
// key/value heads, D head width, R rotated width of a head, V vocabulary, E experts, P pages; a gradient is
// `d` + name.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "tensor/dtype.h"

namespace qiao {

inline constexpr int kMaxRank = 4;

// Never owns. Outermost dimension first; strides in elements; the memory is a chip's, not always readable by
// the host. A default-made Tensor is "absent" (optional arguments of ops).
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};

  Tensor() = default;
  // Contiguous.
  Tensor(void* memory, DType type, std::initializer_list<int64_t> dimensions);

  bool present() const { return rank != 0; }
  int64_t elements() const;
  bool contiguous() const;       // row-major without gaps
  bool rows_contiguous() const;  // the last dimension has stride 1 (or one element)
  int64_t bytes() const { return elements() * traits(dtype).block_bytes; }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // [begin, begin + count) of the outermost dimension.
  Tensor slice(int64_t begin, int64_t count) const;
  // [begin, begin + count) of dimension `axis`.
  Tensor narrow(int axis, int64_t begin, int64_t count) const;
  // The last dimension split into [count, size / count].
  Tensor split_last(int64_t count) const;
};

std::string to_string(const Tensor& tensor);  // "F32[17, 576]"

}  // namespace qiao
