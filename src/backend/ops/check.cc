#include "backend/ops/check.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "base/error.h"

namespace qiao::check {
namespace {

std::string described(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor expected;
  expected.dtype = dtype;
  for (const int64_t size : shape) expected.shape[static_cast<size_t>(expected.rank++)] = size;
  return to_string(expected);
}

// One past the last element, in elements from data; strides are not negative (no_self_overlap).
int64_t extent(const Tensor& tensor, int first_axis) {
  int64_t last = 0;
  for (int i = first_axis; i < tensor.rank; ++i) {
    const auto axis = static_cast<size_t>(i);
    if (tensor.shape[axis] == 0) return 0;
    last += (tensor.shape[axis] - 1) * tensor.stride[axis];
  }
  return last + 1;
}

// Each dimension's stride steps over all that the dimensions of smaller strides span.
bool no_self_overlap(const Tensor& tensor) {
  int64_t span = 1;  // of the dimensions seen so far, smallest stride first
  unsigned seen = 0;
  for (int step = 0; step < tensor.rank; ++step) {
    int next = -1;
    for (int i = 0; i < tensor.rank; ++i) {
      const auto axis = static_cast<size_t>(i);
      if ((seen >> i & 1) != 0 || tensor.shape[axis] <= 1) continue;
      if (next < 0 || tensor.stride[axis] < tensor.stride[static_cast<size_t>(next)]) next = i;
    }
    if (next < 0) return true;
    seen |= 1u << next;
    const auto axis = static_cast<size_t>(next);
    if (tensor.stride[axis] < span) return false;
    span += (tensor.shape[axis] - 1) * tensor.stride[axis];
  }
  return true;
}

bool overlap(const Tensor& a, const Tensor& b) {
  if (!a.present() || !b.present() || a.elements() == 0 || b.elements() == 0) return false;
  const int64_t a_size = traits(a.dtype).block_bytes;
  const int64_t b_size = traits(b.dtype).block_bytes;
  const auto a_begin = reinterpret_cast<intptr_t>(a.data);
  const auto b_begin = reinterpret_cast<intptr_t>(b.data);
  if (a_begin + extent(a, 0) * a_size <= b_begin || b_begin + extent(b, 0) * b_size <= a_begin) return false;
  const int64_t a_row = a.stride[0] * a_size;
  const int64_t b_row = b.stride[0] * b_size;
  const int64_t a_bytes = extent(a, 1) * a_size;
  const int64_t b_bytes = extent(b, 1) * b_size;
  if (a_row != b_row || a.rank < 2 || b.rank < 2 || a_bytes > a_row || b_bytes > b_row) return true;
  const int64_t offset = ((b_begin - a_begin) % a_row + a_row) % a_row;
  return offset < a_bytes || offset + b_bytes > a_row;
}

bool same(const Tensor& a, const Tensor& b) {
  if (a.data != b.data || a.dtype != b.dtype || a.rank != b.rank) return false;
  for (size_t i = 0; i < static_cast<size_t>(a.rank); ++i) {
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.stride[i] != b.stride[i])) return false;
  }
  return true;
}

}  // namespace

void refuse(std::string_view op, std::string_view message) {
  throw_error(ErrorKind::kInvalidInput, "{}: {}", op, message);
}

void tensor(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
            std::initializer_list<int64_t> shape) {
  if (tensor.rank != static_cast<int>(shape.size()) || tensor.dtype != dtype ||
      !std::equal(shape.begin(), shape.end(), tensor.shape.begin())) {
    if (!tensor.present())
      refuse(op, fmt::format("{} is absent, expected {}", name, described(dtype, shape)));
    refuse(op, fmt::format("{} is {}, expected {}", name, to_string(tensor), described(dtype, shape)));
  }
  if (tensor.elements() == 0) return;
  if (tensor.data == nullptr) refuse(op, fmt::format("{} {} has no memory", name, to_string(tensor)));
  if (reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(traits(dtype).block_bytes) != 0) {
    refuse(op, fmt::format("{} {} is not aligned to its elements", name, to_string(tensor)));
  }
  if (!no_self_overlap(tensor)) {
    refuse(op,
           fmt::format("{} {} has strides [{}] that put two elements at one address", name, to_string(tensor),
                       fmt::join(std::span(tensor.stride.data(), static_cast<size_t>(tensor.rank)), ", ")));
  }
}

void rows(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
          std::initializer_list<int64_t> shape) {
  check::tensor(op, name, tensor, dtype, shape);
  if (tensor.elements() != 0 && !tensor.rows_contiguous()) {
    refuse(op, fmt::format("{} {} has stride {} in its last dimension, expected 1", name, to_string(tensor),
                           tensor.stride[static_cast<size_t>(tensor.rank - 1)]));
  }
}

void dense(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
           std::initializer_list<int64_t> shape) {
  check::tensor(op, name, tensor, dtype, shape);
  if (tensor.elements() != 0 && !tensor.contiguous()) {
    refuse(op,
           fmt::format("{} {} has strides [{}], expected it without gaps", name, to_string(tensor),
                       fmt::join(std::span(tensor.stride.data(), static_cast<size_t>(tensor.rank)), ", ")));
  }
}

void rank(std::string_view op, std::string_view name, const Tensor& tensor, int rank) {
  if (tensor.rank == rank) return;
  if (!tensor.present()) refuse(op, fmt::format("{} is absent", name));
  refuse(op, fmt::format("{} is {}, expected {} dimensions", name, to_string(tensor), rank));
}

void distinct(std::string_view op, std::string_view a_name, const Tensor& a, std::string_view b_name,
              const Tensor& b) {
  if (overlap(a, b)) {
    refuse(op, fmt::format("{} {} overlaps {} {}", a_name, to_string(a), b_name, to_string(b)));
  }
}

void same_or_distinct(std::string_view op, std::string_view a_name, const Tensor& a, std::string_view b_name,
                      const Tensor& b) {
  if (a.present() && same(a, b)) return;
  if (overlap(a, b)) {
    refuse(op,
           fmt::format("{} {} overlaps {} {} without being it", a_name, to_string(a), b_name, to_string(b)));
  }
}

void dense_weight(std::string_view op, std::string_view name, const Weight* weight) {
  if (weight == nullptr) refuse(op, fmt::format("{} is absent", name));
  if (weight->experts() != 1) {
    refuse(op, fmt::format("{} [{}, {}, {}] has {} experts, expected 1", name, weight->experts(),
                           weight->rows(), weight->columns(), weight->experts()));
  }
}

void compute(std::string_view op, const Weight& weight, Compute compute) {
  if (compute == Compute::kF32) return;
  for (const Weight::Segment& segment : weight.segments()) {
    const DTypeTraits& dtype = traits(segment.dtype);
    if (compute == Compute::kF8 && segment.dtype != DType::kF8_128) {
      refuse(op, fmt::format("compute is F8, but weight rows from {} are {}, expected F8_128",
                             segment.first_row, dtype.name));
    }
    if (compute == Compute::kQ8 && (!dtype.quantized || segment.dtype == DType::kF8_128)) {
      refuse(op,
             fmt::format("compute is Q8, but weight rows from {} are {}, expected a block format of integers",
                         segment.first_row, dtype.name));
    }
    if (compute == Compute::kBF16 && segment.dtype != DType::kBF16) {
      refuse(op, fmt::format("compute is BF16, but weight rows from {} are {}, expected BF16",
                             segment.first_row, dtype.name));
    }
  }
}

void gradient_compute(std::string_view op, const Weight& weight, Compute kind) {
  if (kind == Compute::kQ8) refuse(op, "compute is of the forward pass alone, expected F32, BF16 or F8");
  compute(op, weight, kind);
  if (kind == Compute::kF8 && !weight.square_scales())
    refuse(op, "compute is F8, but the weight's scales are of single rows, expected them of 128 x 128");
}

void rotation(std::string_view op, const Tensor& q, const Tensor& positions,
              const Tensor& inverse_frequencies, float scale) {
  rank(op, "inverse_frequencies", inverse_frequencies, 1);
  const int64_t pairs = inverse_frequencies.shape[0], width = q.shape[2];
  dense(op, "positions", positions, DType::kI32, {q.shape[0]});
  dense(op, "inverse_frequencies", inverse_frequencies, DType::kF32, {pairs});
  if (pairs < 1 || pairs > width / 2) {
    refuse(op, fmt::format("inverse_frequencies is {}, expected from 1 to {} for q {}",
                           to_string(inverse_frequencies), width / 2, to_string(q)));
  }
  if (!std::isfinite(scale)) refuse(op, "scale is not finite");
}

void workspace(std::string_view op, const Tensor& workspace) {
  if (!workspace.present()) return;
  if (workspace.dtype != DType::kU8 || workspace.rank != 1 || !workspace.contiguous()) {
    refuse(op,
           fmt::format("workspace is {}, expected U8 of one dimension without gaps", to_string(workspace)));
  }
  if (workspace.data == nullptr && workspace.elements() != 0) refuse(op, "workspace has no memory");
  if (reinterpret_cast<uintptr_t>(workspace.data) % 64 != 0) refuse(op, "workspace is not 64-byte aligned");
}

double weight_bytes(const Weight& weight) {
  double bytes = 0;
  for (const Weight::Segment& segment : weight.segments()) {
    bytes +=
        static_cast<double>(segment.rows) * static_cast<double>(row_bytes(segment.dtype, weight.columns()));
  }
  return bytes;
}

}  // namespace qiao::check
