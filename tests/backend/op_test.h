// What the tests of ops share: host memory behind tensors, and refusals.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace qiao {

// Values and the tensor over them; 64-byte aligned as a chip's memory is.
template <typename T, DType kDType>
class Values {
 public:
  Values(std::initializer_list<int64_t> shape, std::vector<T> values = {}) : tensor_(nullptr, kDType, shape) {
    const auto count = static_cast<size_t>(tensor_.elements());
    memory_.resize(count * sizeof(T) + 64);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    tensor_.data = memory_.data() + (64 - address % 64) % 64;
    for (size_t i = 0; i < values.size() && i < count; ++i) data()[i] = values[i];
  }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;
  operator Tensor() const { return tensor_; }
  Tensor tensor() const { return tensor_; }
  T* data() const { return tensor_.as<T>(); }
  std::vector<T> list() const { return {data(), data() + tensor_.elements()}; }

 private:
  std::vector<std::byte> memory_;
  Tensor tensor_;
};
using Floats = Values<float, DType::kF32>;
using Ints = Values<int32_t, DType::kI32>;
using Bytes = Values<uint8_t, DType::kU8>;

inline std::unique_ptr<Backend> reference_chip() { return make_reference_backend({}); }

// A weight of one part of F32 rows (or of zero bytes in another format).
inline std::unique_ptr<Weight> weight_of(Backend& chip, int64_t rows, int64_t columns,
                                         std::vector<float> values, int64_t experts = 1) {
  WeightSource source;
  source.experts = experts;
  source.columns = columns;
  values.resize(static_cast<size_t>(experts * rows * columns));
  for (int64_t e = 0; e < experts; ++e) {
    source.parts.push_back(
        {DType::kF32, rows, reinterpret_cast<const std::byte*>(values.data() + e * rows * columns)});
  }
  return chip.make_weight(source);
}
inline std::unique_ptr<Weight> empty_weight(Backend& chip, DType dtype, int64_t rows, int64_t columns) {
  const std::vector<std::byte> zeros(static_cast<size_t>(rows * row_bytes(dtype, columns)));
  WeightSource source;
  source.columns = columns;
  source.parts = {{dtype, rows, zeros.data()}};
  return chip.make_weight(source);
}

// `tensor` seen as another shape of the same memory, for refusals.
inline Tensor reshaped(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return Tensor(tensor.data, tensor.dtype, shape);
}

// The derivative of `loss` by values[i], by central differences in float64: correct to some 1e-9 of the loss.
template <typename Loss>
double difference_quotient(Loss loss, std::vector<double> values, size_t i) {
  const double at = values[i], step = 1e-5 * std::max(1.0, std::abs(at));
  values[i] = at + step;
  const double above = loss(values);
  values[i] = at - step;
  return (above - loss(values)) / (2 * step);
}
inline std::vector<double> as_doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

// What check() says of op; empty where it is content.
template <typename Op>
std::string refusal(const Op& op) {
  try {
    op.check();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidInput);
    return e.what();
  }
  return "";
}

}  // namespace qiao
