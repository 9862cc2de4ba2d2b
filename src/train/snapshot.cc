#include "train/snapshot.h"

#include "base/error.h"

namespace qiao::train {
namespace {

constexpr size_t kSnapshotAlignment = 64;

size_t aligned(size_t bytes) {
  return (bytes + kSnapshotAlignment - 1) / kSnapshotAlignment * kSnapshotAlignment;
}
size_t master_bytes(const Parameters::Named& tensor) {
  return static_cast<size_t>(tensor.count) * sizeof(float);
}

}  // namespace

Snapshot::Snapshot(const Parameters& parameters, const Optimizer& optimizer)
    : parameters_(parameters), optimizer_(optimizer), masters_(parameters.tensors().size()) {
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    if (!tensor.is_here) continue;
    masters_[i] = kept_.size();
    add({fmt::format("parameter.{}", tensor.name), DType::kF32, tensor.shape, i, 0, master_bytes(tensor)});
  }
  for (const Optimizer::State& state : optimizer.states())
    add({state.name, state.dtype, state.shape, state.tensor, 0, state.bytes});
  memory_.reset(new std::byte[size_]);
}

void Snapshot::add(Kept kept) {
  kept.first = size_;
  size_ += aligned(kept.bytes);
  kept_.push_back(std::move(kept));
}

size_t Snapshot::bytes_for(const Parameters& parameters, const Optimizer& optimizer) {
  size_t bytes = 0;
  for (const Parameters::Named& tensor : parameters.tensors())
    if (tensor.is_here) bytes += aligned(master_bytes(tensor));
  for (const Optimizer::State& state : optimizer.states()) bytes += aligned(state.bytes);
  return bytes;
}

void Snapshot::take() {
  const size_t states = kept_.size() - optimizer_.states().size();
  for (size_t i = 0; i < kept_.size(); ++i) {
    const Kept& kept = kept_[i];
    std::byte* to = memory_.get() + kept.first;
    if (i >= states) {
      optimizer_.read(optimizer_.states()[i - states], {to, kept.bytes});
    } else {
      const Parameters::Named& tensor = parameters_.tensors()[kept.tensor];
      parameters_.read(Parameters::Kind::kMaster, tensor,
                       {reinterpret_cast<float*>(to), static_cast<size_t>(tensor.count)});
    }
  }
}

std::span<const float> Snapshot::master(size_t tensor) const {
  QIAO_ASSERT(parameters_.tensors()[tensor].is_here);
  const std::span<const std::byte> values = bytes(kept_[masters_[tensor]]);
  return {reinterpret_cast<const float*>(values.data()), values.size() / sizeof(float)};
}

}  // namespace qiao::train
