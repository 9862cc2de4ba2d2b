#include "train/snapshot.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::train {
namespace {

constexpr size_t kSnapshotAlignment = 64;

size_t aligned(size_t bytes) {
  return (bytes + kSnapshotAlignment - 1) / kSnapshotAlignment * kSnapshotAlignment;
}
// The list of what is kept, masters and then states, with the bytes of each and of this rank's part.
template <class Visit>
void each_kept(const Parameters& parameters, const Optimizer& optimizer, Visit visit) {
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    if (!tensor.is_here) continue;
    const auto whole = static_cast<size_t>(tensor.runs * tensor.part.whole_count());
    visit(Snapshot::Kept{fmt::format("parameter.{}", tensor.name), DType::kF32, tensor.shape, i, 0,
                         whole * sizeof(float), static_cast<size_t>(tensor.count) * sizeof(float)});
  }
  for (const Optimizer::State& state : optimizer.states()) {
    visit(Snapshot::Kept{state.name, state.dtype, state.shape, state.tensor, 0, state.whole_bytes,
                         state.bytes});
  }
}

}  // namespace

Snapshot::Snapshot(const Parameters& parameters, const Optimizer& optimizer, const Ranks& ranks, Kind kind)
    : parameters_(parameters),
      optimizer_(optimizer),
      ranks_(ranks),
      kind_(kind),
      masters_(parameters.tensors().size()) {
  QIAO_ASSERT(kind == Kind::kCopy || ranks.group().size() == 1);
  each_kept(parameters, optimizer, [&](Kept kept) { add(std::move(kept)); });
  states_ = kept_.size() - optimizer.states().size();
  for (size_t i = 0; i < states_; ++i) masters_[kept_[i].tensor] = i;
  memory_.reset(new std::byte[bytes_for(parameters, optimizer, ranks, kind)]);
}

void Snapshot::add(Kept kept) {
  if (kind_ == Kind::kCopy) {
    kept.first = size_;
    size_ += aligned(kept.bytes);
  }
  kept_.push_back(std::move(kept));
}

size_t Snapshot::bytes_for(const Parameters& parameters, const Optimizer& optimizer, const Ranks& ranks,
                           Kind kind) {
  size_t all = 0, largest = 0, largest_part = 0;
  each_kept(parameters, optimizer, [&](const Kept& kept) {
    all += aligned(kept.bytes);
    largest = std::max(largest, aligned(kept.bytes));
    largest_part = std::max(largest_part, aligned(kept.own));
  });
  if (ranks.group().size() > 1) return (ranks.leads_group() ? all : 0) + largest_part;
  return kind == Kind::kCopy ? all : largest;
}

void Snapshot::read(const Kept& kept, std::byte* to) const {
  const size_t place = static_cast<size_t>(&kept - kept_.data());
  if (place >= states_) {
    optimizer_.read(optimizer_.states()[place - states_], {to, kept.own});
  } else {
    const Parameters::Named& tensor = parameters_.tensors()[kept.tensor];
    parameters_.read(Parameters::Kind::kMaster, tensor,
                     {reinterpret_cast<float*>(to), static_cast<size_t>(tensor.count)});
  }
}

void Snapshot::take() {
  if (kind_ == Kind::kInPlace) return;
  const bool is_spread = ranks_.group().size() > 1;
  for (const Kept& kept : kept_) {
    if (!is_spread) {
      read(kept, memory_.get() + kept.first);
      continue;
    }
    std::byte* const part = memory_.get() + (ranks_.leads_group() ? size_ : 0);  // behind the copy
    read(kept, part);
    const std::span<const std::byte> own(part, kept.own);
    const std::span<std::byte> whole =
        ranks_.leads_group() ? std::span(memory_.get() + kept.first, kept.bytes) : std::span<std::byte>();
    const bool is_state = &kept - kept_.data() >= static_cast<std::ptrdiff_t>(states_);
    if (is_state && ranks_.keeper(kept.tensor)) {
      ranks_.hand_over(kept.tensor, own, whole);
    } else {
      ranks_.gather(kept.tensor, static_cast<size_t>(row_bytes(kept.dtype, 1)), own, whole);
    }
  }
}

std::span<const std::byte> Snapshot::bytes(const Kept& kept) const {
  if (kind_ == Kind::kInPlace) read(kept, memory_.get());
  return {memory_.get() + kept.first, kept.bytes};
}

std::span<const float> Snapshot::master(size_t tensor) const {
  QIAO_ASSERT(parameters_.tensors()[tensor].is_here && ranks_.leads_group());
  const std::span<const std::byte> values = bytes(kept_[masters_[tensor]]);
  return {reinterpret_cast<const float*>(values.data()), values.size() / sizeof(float)};
}

}  // namespace qiao::train
