#include "train/snapshot.h"

namespace qiao::train {

Snapshot::Snapshot(Parameters& parameters) : parameters_(parameters) {
  for (const Parameters::Named& tensor : parameters.tensors()) {
    firsts_.push_back(count_);
    count_ += tensor.count;
  }
  values_.reset(new float[kKinds * static_cast<size_t>(count_)]);
}

size_t Snapshot::bytes_for(const Parameters& parameters) {
  size_t count = 0;
  for (const Parameters::Named& tensor : parameters.tensors()) count += static_cast<size_t>(tensor.count);
  return kKinds * count * sizeof(float);
}

void Snapshot::take() {
  for (const auto kind :
       {Parameters::Kind::kMaster, Parameters::Kind::kFirstMoment, Parameters::Kind::kSecondMoment}) {
    for (size_t i = 0; i < firsts_.size(); ++i) {
      const std::span<const float> place = values(kind, i);
      parameters_.read(kind, tensors()[i], std::span(const_cast<float*>(place.data()), place.size()));
    }
  }
}

std::span<const float> Snapshot::values(Parameters::Kind kind, size_t tensor) const {
  const int64_t order = kind == Parameters::Kind::kMaster        ? 0
                        : kind == Parameters::Kind::kFirstMoment ? 1
                                                                 : 2;
  const int64_t first = order * count_ + firsts_[tensor];
  return {values_.get() + first, static_cast<size_t>(tensors()[tensor].count)};
}

}  // namespace qiao::train
