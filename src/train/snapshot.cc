#include "train/snapshot.h"

#include <algorithm>

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

Snapshot::Snapshot(const Parameters& parameters, const Optimizer& optimizer, Kind kind)
    : parameters_(parameters), optimizer_(optimizer), kind_(kind), masters_(parameters.tensors().size()) {
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    if (!tensor.is_here) continue;
    masters_[i] = kept_.size();
    add({fmt::format("parameter.{}", tensor.name), DType::kF32, tensor.shape, i, 0, master_bytes(tensor)});
  }
  states_ = kept_.size();
  for (const Optimizer::State& state : optimizer.states())
    add({state.name, state.dtype, state.shape, state.tensor, 0, state.bytes});
  memory_.reset(new std::byte[bytes_for(parameters, optimizer, kind)]);
}

void Snapshot::add(Kept kept) {
  if (kind_ == Kind::kCopy) {
    kept.first = size_;
    size_ += aligned(kept.bytes);
  }
  kept_.push_back(std::move(kept));
}

size_t Snapshot::bytes_for(const Parameters& parameters, const Optimizer& optimizer, Kind kind) {
  size_t all = 0, largest = 0;
  const auto count = [&](size_t bytes) {
    all += aligned(bytes);
    largest = std::max(largest, aligned(bytes));
  };
  for (const Parameters::Named& tensor : parameters.tensors())
    if (tensor.is_here) count(master_bytes(tensor));
  for (const Optimizer::State& state : optimizer.states()) count(state.bytes);
  return kind == Kind::kCopy ? all : largest;
}

void Snapshot::read(const Kept& kept, std::byte* to) const {
  const size_t place = static_cast<size_t>(&kept - kept_.data());
  if (place >= states_) {
    optimizer_.read(optimizer_.states()[place - states_], {to, kept.bytes});
  } else {
    const Parameters::Named& tensor = parameters_.tensors()[kept.tensor];
    parameters_.read(Parameters::Kind::kMaster, tensor,
                     {reinterpret_cast<float*>(to), static_cast<size_t>(tensor.count)});
  }
}

void Snapshot::take() {
  if (kind_ == Kind::kInPlace) return;
  for (const Kept& kept : kept_) read(kept, memory_.get() + kept.first);
}

std::span<const std::byte> Snapshot::bytes(const Kept& kept) const {
  if (kind_ == Kind::kInPlace) read(kept, memory_.get());
  return {memory_.get() + kept.first, kept.bytes};
}

std::span<const float> Snapshot::master(size_t tensor) const {
  QIAO_ASSERT(parameters_.tensors()[tensor].is_here);
  const std::span<const std::byte> values = bytes(kept_[masters_[tensor]]);
  return {reinterpret_cast<const float*>(values.data()), values.size() / sizeof(float)};
}

}  // namespace qiao::train
