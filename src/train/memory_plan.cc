#include "train/memory_plan.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/process_memory.h"
#include "base/units.h"
#include "train/snapshot.h"

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

MemoryPlan plan_memory(const Decoder& decoder, const Parameters& parameters, const ModelFiles& files,
                       int64_t tokens, int64_t documents) {
  MemoryPlan plan;
  plan.weights = decoder.weight_bytes();
  const uint64_t resident = resident_bytes();
  plan.process = resident - std::min(resident, plan.weights);
  plan.parameters = parameters.bytes();
  plan.activations = DecoderTraining::bytes_for(decoder, tokens, documents);
  uint64_t converted = 0;  // the largest tensor in the files' dtype, when it is written
  for (const Parameters::Named& tensor : parameters.tensors()) {
    const TensorInfo* info = files.find(tensor.name);
    if (info != nullptr && info->dtype != DType::kF32) converted = std::max(converted, info->bytes);
  }
  plan.checkpoint = Snapshot::bytes_for(parameters) + converted;
  return plan;
}

void check_memory(const MemoryPlan& plan, const Decoder& decoder, int64_t tokens, int64_t documents,
                  int64_t micro_batch, int64_t sequence) {
  const uint64_t free = decoder.backend().describe().free_bytes;
  const uint64_t others = plan.parameters + plan.checkpoint;
  if (free == 0 || others + plan.activations <= free) return;
  const double share = static_cast<double>(documents) / static_cast<double>(tokens);
  const int64_t of_sequence = tokens / (micro_batch * sequence);  // 1, or more where a row makes several
  const auto fits = [&](int64_t batch, int64_t length) {
    if (others > free) return false;
    const int64_t count = batch * length * of_sequence;
    const auto parts = static_cast<int64_t>(share * static_cast<double>(count)) + batch;
    return DecoderTraining::bytes_for(decoder, count, parts) <= free - others;
  };
  std::string advice = "no smaller batch would fit: a smaller model might";
  if (const int64_t most = largest(micro_batch, [&](int64_t n) { return fits(n, sequence); }); most > 0) {
    advice = fmt::format("--micro-batch {} fits", most);
  } else if (const int64_t tokens_fit = largest(sequence, [&](int64_t n) { return fits(1, n); });
             tokens_fit > 1) {
    advice = fmt::format("--micro-batch 1 with --seq {} fits", tokens_fit);
  }
  throw_error(
      ErrorKind::kTooLarge,
      "the run would take {}: {} for the program and its data, {} of weights, {} of masters, gradients and "
      "moments, {} of activations (--micro-batch {} of --seq {}), {} to write checkpoints from; beside what "
      "it has already, {} of the {} are free; {}",
      format_bytes(plan.total()), format_bytes(plan.process), format_bytes(plan.weights),
      format_bytes(plan.parameters), format_bytes(plan.activations), micro_batch, sequence,
      format_bytes(plan.checkpoint), format_bytes(free), format_bytes(others + plan.activations), advice);
}

}  // namespace qiao::train
