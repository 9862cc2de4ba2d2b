#include "train/parameters.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "tensor/floats.h"

namespace qiao::train {
namespace {

constexpr int64_t kGap = 16;  // groups begin at whole cache lines

}  // namespace

Parameters::Group& Parameters::group_of(const LaidOutTensor& tensor) {
  const bool is_weight = tensor.weight != nullptr;
  const auto [found, is_new] = is_weight ? weights_.try_emplace(tensor.weight, groups_.size())
                                         : small_.try_emplace(tensor.parameter.data, groups_.size());
  if (is_new) {
    Group group;
    group.first = count_;
    group.weight = tensor.weight;
    group.parameter = tensor.parameter;
    group.rows = is_weight ? tensor.weight->experts() * tensor.weight->rows() : 1;
    group.columns = is_weight ? tensor.weight->columns() : tensor.parameter.elements();
    count_ += (group.rows * group.columns + kGap - 1) / kGap * kGap;
    groups_.push_back(group);
  }
  return groups_[found->second];
}

void Parameters::add(const LaidOutTensor& tensor) {
  const TensorInfo& source = *tensor.source;
  if (!is_dense_float(source.dtype)) {
    throw_error(ErrorKind::kUnsupported,
                "tensor {} is {}; all of a model is trained in F32, F16 or BF16 only", source.name,
                source.type_name());
  }
  Group& group = group_of(tensor);
  const bool is_weight = tensor.weight != nullptr;
  const int64_t row = is_weight ? group.columns : 1;
  const int64_t expert_rows = is_weight ? tensor.weight->rows() : 0, count = tensor.rows * row;
  if (!is_weight) group.parts.push_back({tensor.first_row, tensor.rows, source.dtype});
  // A tensor of all experts is told of once for each, in their order.
  const auto [found, is_new] = by_name_.try_emplace(source.name, named_.size());
  if (!is_new) {
    Named& named = named_[found->second];
    named.count += count;
    named.runs += 1;
    named.stride = expert_rows * row;
    return;
  }
  named_.push_back({source.name, source.shape,
                    group.first + (tensor.expert * expert_rows + tensor.first_row) * row, count});
}

Tensor Parameters::flat(const Buffer& buffer, int64_t first, int64_t count) const {
  return Tensor(static_cast<float*>(buffer.data()) + first, DType::kF32, {count});
}

// A piece at a time: a buffer may be most of the memory.
void Parameters::clear(const Buffer& buffer) {
  static constexpr std::array<std::byte, size_t{1} << 16> kZeros{};
  for (size_t at = 0; at < buffer.bytes(); at += kZeros.size()) {
    backend_.upload(static_cast<std::byte*>(buffer.data()) + at, kZeros.data(),
                    std::min(kZeros.size(), buffer.bytes() - at));
  }
}

void Parameters::prepare(const ModelFiles& files) {
  for (Buffer* buffer : {&masters_, &gradients_, &first_moments_, &second_moments_}) {
    *buffer = backend_.allocate(static_cast<size_t>(count_) * sizeof(float));
    clear(*buffer);
  }
  sum_ = backend_.allocate(sizeof(double));
  std::vector<float> values;
  for (const Named& named : named_) {
    const TensorInfo& source = *files.find(named.name);
    values.resize(static_cast<size_t>(named.count));
    to_floats(source.dtype, files.bytes(source).data(), values);
    files.release(source);
    write(Kind::kMaster, named, values);
  }
  rewrite();
}

Tensor Parameters::of(const Weight& weight) {
  const auto found = weights_.find(&weight);
  if (found == weights_.end()) return {};
  const Group& group = groups_[found->second];
  return Tensor(static_cast<float*>(gradients_.data()) + group.first, DType::kF32,
                {group.rows, group.columns});
}

Tensor Parameters::of_parameter(const Tensor& value) {
  // A bias of one piece of a fused projection is a part of its group's.
  auto found = small_.upper_bound(value.data);
  QIAO_ASSERT(found != small_.begin());
  const Group& group = groups_[(--found)->second];
  const int64_t offset = value.as<float>() - group.parameter.as<float>();
  QIAO_ASSERT(offset >= 0 && offset + value.elements() <= group.columns);
  return flat(gradients_, group.first + offset, value.elements());
}

void Parameters::zero_gradients() { clear(gradients_); }

double Parameters::gradient_norm() {
  double sum = 0;
  backend_.upload(sum_.data(), &sum, sizeof(sum));
  SumOfSquares op;
  op.x = flat(gradients_, 0, count_);
  op.sum = Tensor(sum_.data(), DType::kF64, {1});
  backend_.sum_of_squares(op);
  backend_.download(&sum, sum_.data(), sizeof(sum));
  return std::sqrt(sum);
}

void Parameters::update(const AdamWSettings& settings, double gradient_scale, int64_t step) {
  AdamW op;
  op.parameters = flat(masters_, 0, count_);
  op.gradients = flat(gradients_, 0, count_);
  op.first_moment = flat(first_moments_, 0, count_);
  op.second_moment = flat(second_moments_, 0, count_);
  op.learning_rate = settings.learning_rate;
  op.beta1 = settings.beta1;
  op.beta2 = settings.beta2;
  op.epsilon = settings.epsilon;
  op.weight_decay = settings.weight_decay;
  op.gradient_scale = gradient_scale;
  op.step = step;
  backend_.adamw(op);
  rewrite();
}

void Parameters::rewrite() {
  std::vector<float> small;
  std::vector<std::byte> rounded;
  for (const Group& group : groups_) {
    if (group.weight != nullptr) {
      const int64_t rows = group.weight->rows();
      const Tensor masters(static_cast<float*>(masters_.data()) + group.first, DType::kF32,
                           {group.rows, group.columns});
      for (int64_t expert = 0; expert < group.weight->experts(); ++expert)
        backend_.write_weight(*group.weight, expert, masters.slice(expert * rows, rows));
    } else {
      small.resize(static_cast<size_t>(group.columns));
      backend_.download(small.data(), static_cast<float*>(masters_.data()) + group.first,
                        small.size() * sizeof(float));
      for (const Group::Part& part : group.parts) {
        if (small_tensors_ == SmallTensors::kF32 || part.dtype == DType::kF32) continue;
        const std::span<float> values =
            std::span(small).subspan(static_cast<size_t>(part.first), static_cast<size_t>(part.count));
        rounded.resize(static_cast<size_t>(row_bytes(part.dtype, part.count)));
        from_floats(values, part.dtype, rounded.data());
        to_floats(part.dtype, rounded.data(), values);
      }
      backend_.upload(group.parameter.data, small.data(), small.size() * sizeof(float));
    }
  }
}

template <class Body>
void Parameters::each_run(Kind kind, const Named& tensor, Body body) const {
  const Buffer& buffer = kind == Kind::kMaster        ? masters_
                         : kind == Kind::kGradient    ? gradients_
                         : kind == Kind::kFirstMoment ? first_moments_
                                                      : second_moments_;
  const int64_t count = tensor.count / tensor.runs;
  for (int64_t run = 0; run < tensor.runs; ++run) {
    body(static_cast<float*>(buffer.data()) + tensor.first + run * tensor.stride,
         static_cast<size_t>(run * count), static_cast<size_t>(count));
  }
}

std::vector<float> Parameters::read(Kind kind, const Named& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.count));
  each_run(kind, tensor, [&](const float* from, size_t begin, size_t count) {
    backend_.download(values.data() + begin, from, count * sizeof(float));
  });
  return values;
}

void Parameters::write(Kind kind, const Named& tensor, std::span<const float> values) {
  QIAO_ASSERT(std::ssize(values) == tensor.count);
  each_run(kind, tensor, [&](float* to, size_t begin, size_t count) {
    backend_.upload(to, values.data() + begin, count * sizeof(float));
  });
}

}  // namespace qiao::train
