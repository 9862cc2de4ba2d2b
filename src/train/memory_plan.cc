#include "train/memory_plan.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/process_memory.h"
#include "base/units.h"

namespace qiao::train {
namespace {

// The largest in [1, most] for which fits(n) holds, which it does for all that are smaller; 0: none.
int64_t largest(int64_t most, const std::function<bool(int64_t)>& fits) {
  int64_t low = 0;
  while (low < most) {
    const int64_t middle = low + (most - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      most = middle - 1;
    }
  }
  return low;
}

}  // namespace

MemoryPlan plan_memory(const Decoder& decoder, const Parameters& parameters, const Optimizer& optimizer,
                       const ModelFiles& files, const MicroBatch& batch, Recompute recompute,
                       Snapshot::Kind snapshot, const Ranks& ranks) {
  MemoryPlan plan;
  plan.weights = decoder.weight_bytes();
  const uint64_t resident = resident_bytes();
  plan.process = resident - std::min(resident, plan.weights);
  plan.parameters = parameters.bytes() + optimizer.bytes();
  uint64_t converted = 0, elsewhere = 0;  // the largest tensor in the files' dtype, when it is written
  for (const Parameters::Named& tensor : parameters.tensors()) {
    const TensorInfo* info = files.find(tensor.name);
    if (info != nullptr && info->dtype != DType::kF32) converted = std::max(converted, info->bytes);
    // Read from another rank's file.
    const auto whole = static_cast<uint64_t>(tensor.runs * tensor.part.whole_count());
    if (!tensor.is_here) elsewhere = std::max(elsewhere, whole * sizeof(float));
  }
  plan.checkpoint = Snapshot::bytes_for(parameters, optimizer, ranks, snapshot) + converted + elsewhere;
  const uint64_t free = decoder.backend().describe().free_bytes, others = plan.parameters + plan.checkpoint;
  const DecoderTraining::Plan passes = DecoderTraining::plan(
      decoder, batch.tokens, batch.documents, recompute, free - std::min(free, others), batch.needs);
  plan.activations = passes.bytes;
  plan.recomputes = passes.recomputes;
  return plan;
}

void check_memory(const MemoryPlan& plan, const Decoder& decoder, const MicroBatch& batch,
                  Recompute recompute) {
  const uint64_t free = decoder.backend().describe().free_bytes;
  const uint64_t others = plan.parameters + plan.checkpoint;
  if (free == 0 || others + plan.activations <= free) return;
  const double share = static_cast<double>(batch.documents) / static_cast<double>(batch.tokens);
  // 1, or more where a row makes several.
  const int64_t of_sequence = std::max<int64_t>(batch.tokens / (batch.sequences * batch.sequence), 1);
  const Recompute least = recompute == Recompute::kOff ? Recompute::kOff : Recompute::kOn;
  const auto fits = [&](int64_t sequences, int64_t length) {
    if (others > free) return false;
    const int64_t count = sequences * length * of_sequence;
    const auto parts = static_cast<int64_t>(share * static_cast<double>(count)) + sequences;
    return DecoderTraining::plan(decoder, count, parts, least, free, batch.needs).bytes <= free - others;
  };
  std::string advice = "no smaller batch would fit: a smaller model might";
  if (const int64_t most = largest(batch.sequences, [&](int64_t n) { return fits(n, batch.sequence); });
      most > 0) {
    advice = fmt::format("--micro-batch {} fits", most);
  } else if (const int64_t tokens_fit = largest(batch.sequence, [&](int64_t n) { return fits(1, n); });
             tokens_fit > 1) {
    advice = fmt::format("--micro-batch 1 with --seq {} fits", tokens_fit);
  }
  throw_error(
      ErrorKind::kTooLarge,
      "the run would take {}: {} for the program and its data, {} of weights, {} of masters, gradients and "
      "the optimizer's states, {} of activations (--micro-batch {} of --seq {}), {} to write checkpoints "
      "from; beside what "
      "it has already, {} of the {} are free; {}",
      format_bytes(plan.total()), format_bytes(plan.process), format_bytes(plan.weights),
      format_bytes(plan.parameters), format_bytes(plan.activations), batch.sequences, batch.sequence,
      format_bytes(plan.checkpoint), format_bytes(free), format_bytes(others + plan.activations), advice);
}

}  // namespace qiao::train
