#include "train/parameters.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/half.h"

namespace qiao::train {
namespace {

constexpr int64_t kGap = 16;  // groups begin at whole cache lines

std::vector<float> values_of(const ModelFiles& files, const TensorInfo& tensor, int64_t first,
                             int64_t count) {
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16) {
    throw_error(ErrorKind::kUnsupported,
                "{}: tensor {} is {}; all of a model is trained in F32, F16 or BF16 only",
                files.path().string(), tensor.name, tensor.type_name());
  }
  std::vector<float> values(static_cast<size_t>(count));
  const std::byte* bytes = files.bytes(tensor).data() + row_bytes(tensor.dtype, first);
  if (tensor.dtype == DType::kF32) {
    std::memcpy(values.data(), bytes, values.size() * sizeof(float));
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, bytes + i * sizeof(half), sizeof(half));
    values[i] = tensor.dtype == DType::kF16 ? f16_to_float(half) : bf16_to_float(half);
  }
  return values;
}

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
    group.rows = is_weight ? tensor.weight->rows() : 1;
    group.columns = is_weight ? tensor.weight->columns() : tensor.parameter.elements();
    count_ += (group.rows * group.columns + kGap - 1) / kGap * kGap;
    groups_.push_back(group);
  }
  return groups_[found->second];
}

void Parameters::add(const ModelFiles& files, const LaidOutTensor& tensor) {
  if (tensor.weight != nullptr && tensor.weight->experts() > 1)
    throw_error(ErrorKind::kUnsupported, "{}: mixtures of experts cannot be trained yet",
                files.path().string());
  const Group& group = group_of(tensor);
  Named named;
  named.name = tensor.source->name;
  named.shape = tensor.source->shape;
  const int64_t row = tensor.weight != nullptr ? group.columns : 1;
  named.first = group.first + tensor.first_row * row;
  named.count = tensor.rows * row;
  initial_.push_back(values_of(files, *tensor.source, 0, named.count));
  named_.push_back(std::move(named));
}

Tensor Parameters::flat(const Buffer& buffer, int64_t first, int64_t count) const {
  return Tensor(static_cast<float*>(buffer.data()) + first, DType::kF32, {count});
}

void Parameters::prepare() {
  const size_t bytes = static_cast<size_t>(count_) * sizeof(float);
  for (Buffer* buffer : {&masters_, &gradients_, &first_moments_, &second_moments_}) {
    *buffer = backend_.allocate(bytes);
    const std::vector<float> zeros(static_cast<size_t>(count_));
    backend_.upload(buffer->data(), zeros.data(), bytes);
  }
  sum_ = backend_.allocate(sizeof(double));
  for (size_t i = 0; i < named_.size(); ++i) write(Kind::kMaster, named_[i], initial_[i]);
  initial_.clear();
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

void Parameters::zero_gradients() {
  const std::vector<float> zeros(static_cast<size_t>(count_));
  backend_.upload(gradients_.data(), zeros.data(), zeros.size() * sizeof(float));
}

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
  for (const Group& group : groups_) {
    if (group.weight != nullptr) {
      backend_.write_weight(*group.weight, 0,
                            Tensor(static_cast<float*>(masters_.data()) + group.first, DType::kF32,
                                   {group.rows, group.columns}));
    } else {
      small.resize(static_cast<size_t>(group.columns));
      backend_.download(small.data(), static_cast<float*>(masters_.data()) + group.first,
                        small.size() * sizeof(float));
      backend_.upload(group.parameter.data, small.data(), small.size() * sizeof(float));
    }
  }
}

std::vector<float> Parameters::read(Kind kind, const Named& tensor) {
  const Buffer& buffer = kind == Kind::kMaster        ? masters_
                         : kind == Kind::kFirstMoment ? first_moments_
                                                      : second_moments_;
  std::vector<float> values(static_cast<size_t>(tensor.count));
  backend_.download(values.data(), static_cast<float*>(buffer.data()) + tensor.first,
                    values.size() * sizeof(float));
  return values;
}

void Parameters::write(Kind kind, const Named& tensor, std::span<const float> values) {
  QIAO_ASSERT(std::ssize(values) == tensor.count);
  const Buffer& buffer = kind == Kind::kMaster        ? masters_
                         : kind == Kind::kFirstMoment ? first_moments_
                                                      : second_moments_;
  backend_.upload(static_cast<float*>(buffer.data()) + tensor.first, values.data(), values.size_bytes());
}

}  // namespace qiao::train
