#include "tensor/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>

#include "base/error.h"

namespace qiao {

Tensor::Tensor(void* memory, DType type, std::initializer_list<int64_t> dimensions)
    : data(memory), dtype(type), rank(static_cast<int>(dimensions.size())) {
  QIAO_ASSERT(rank >= 1 && rank <= kMaxRank);
  int axis = 0;
  for (const int64_t dimension : dimensions) shape[static_cast<size_t>(axis++)] = dimension;
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i) {
    stride[static_cast<size_t>(i)] = step;
    step *= shape[static_cast<size_t>(i)];
  }
}

int64_t Tensor::elements() const {
  int64_t count = rank == 0 ? 0 : 1;
  for (int i = 0; i < rank; ++i) count *= shape[static_cast<size_t>(i)];
  return count;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[static_cast<size_t>(i)] != 1 && stride[static_cast<size_t>(i)] != step) return false;
    step *= shape[static_cast<size_t>(i)];
  }
  return true;
}

bool Tensor::rows_contiguous() const {
  const auto last = static_cast<size_t>(rank - 1);
  return rank > 0 && (stride[last] == 1 || shape[last] == 1);
}

Tensor Tensor::slice(int64_t begin, int64_t count) const { return narrow(0, begin, count); }

Tensor Tensor::narrow(int axis, int64_t begin, int64_t count) const {
  const auto i = static_cast<size_t>(axis);
  QIAO_ASSERT(axis >= 0 && axis < rank && begin >= 0 && count >= 0 && begin + count <= shape[i]);
  Tensor part = *this;
  part.shape[i] = count;
  part.data = static_cast<char*>(data) + begin * stride[i] * traits(dtype).block_bytes;
  return part;
}

Tensor Tensor::split_last(int64_t count) const {
  const auto last = static_cast<size_t>(rank - 1);
  QIAO_ASSERT(rank >= 1 && rank < kMaxRank && count > 0 && shape[last] % count == 0);
  Tensor split = *this;
  split.rank = rank + 1;
  split.shape[last] = count;
  split.shape[last + 1] = shape[last] / count;
  split.stride[last + 1] = stride[last];
  split.stride[last] = stride[last] * split.shape[last + 1];
  return split;
}

std::string to_string(const Tensor& tensor) {
  const std::span<const int64_t> shape(tensor.shape.data(), static_cast<size_t>(tensor.rank));
  return fmt::format("{}[{}]", traits(tensor.dtype).name, fmt::join(shape, ", "));
}

}  // namespace qiao
