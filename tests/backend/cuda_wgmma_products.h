// Products by wgmma on the stand-in: a call's operands, and a chip that they live on.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "tensor/floats.h"
#include "tensor/fp8.h"
#include "tensor/quantize.h"

namespace qiao::cuda {

struct WgmmaCase {
  int64_t tokens, rows, columns;
  int multiprocessors = 4;
  int64_t y_stride = 0;  // 0: rows
  bool bias = false, residual = false;
  Activation activation = Activation::kNone;
  std::vector<int32_t> counts;  // of experts
  Compute compute = Compute::kBF16;
  int major = 9;                // of the compute capability
  DType quants = DType::kQ8_0;  // of kQ8
};

class WgmmaProducts : public ::testing::Test {
 public:
  void TearDown() override { EXPECT_TRUE(stand_in::faults().empty()); }

  std::vector<float> floats(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = static_cast<float>(random_() % 2001) * 1e-3f - 1;
    return values;
  }

  static DType dtype_of(const WgmmaCase& of) {
    return of.compute == Compute::kQ8   ? of.quants
           : of.compute == Compute::kF8 ? DType::kF8_128
                                        : DType::kBF16;
  }
  struct Operands {
    std::vector<float> x, bias, residual;
    std::vector<std::byte> weight;
  };
  Operands operands(const WgmmaCase& of) {
    const int64_t experts = of.counts.empty() ? 1 : static_cast<int64_t>(of.counts.size());
    Operands o;
    o.x = floats(of.tokens * of.columns), o.bias = floats(of.rows);
    o.residual = floats(of.tokens * of.rows);
    const std::vector<float> weight = floats(experts * of.rows * of.columns);
    o.weight.resize(static_cast<size_t>(experts * of.rows * row_bytes(dtype_of(of), of.columns)));
    if (of.compute == Compute::kF8) {
      quantize_f8(weight, experts * of.rows, of.columns, o.weight.data());
    } else if (of.compute == Compute::kQ8) {
      quantize(weight, of.quants, o.weight.data());
    } else {
      from_floats(weight, DType::kBF16, o.weight.data());
    }
    return o;
  }

  // A chip with memory that a call's tensors live in.
  struct Chip {
    std::unique_ptr<Backend> backend;
    std::vector<Buffer> buffers;

    explicit Chip(int major, int multiprocessors) {
      stand_in::Machine machine;
      machine.major = major, machine.multiprocessors = multiprocessors;
      stand_in::reset(machine);
      backend = make_cuda_backend({});
    }
    template <class T>
    Tensor tensor(DType dtype, std::initializer_list<int64_t> shape, const std::vector<T>& values) {
      buffers.push_back(backend->allocate(values.size() * sizeof(T)));
      backend->upload(buffers.back().data(), values.data(), values.size() * sizeof(T));
      return Tensor(buffers.back().data(), dtype, shape);
    }
    std::unique_ptr<Weight> weight(const Operands& o, const WgmmaCase& of) {
      WeightSource source;
      source.experts = of.counts.empty() ? 1 : static_cast<int64_t>(of.counts.size());
      source.columns = of.columns;
      const int64_t each = of.rows * row_bytes(dtype_of(of), of.columns);
      for (int64_t e = 0; e < source.experts; ++e) {
        source.parts.push_back({dtype_of(of), of.rows, o.weight.data() + e * each});
      }
      return backend->make_weight(source);
    }
  };

  template <class Op>
  static void with_workspace(Chip& chip, Op& op) {
    const auto bytes = chip.backend->workspace_bytes(op);
    if (bytes == 0) return;
    op.workspace = chip.tensor(DType::kU8, {static_cast<int64_t>(bytes)}, std::vector<uint8_t>(bytes, 0xff));
  }

 private:
  std::mt19937 random_{11};
};

}  // namespace qiao::cuda
