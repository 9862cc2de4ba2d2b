// Runs texts through an encoder: packs those of all requests into batches by their tokens (nothing is padded,
// so lengths need not match). One thread of its own calls the encoder; submit and cancel are safe from any
// thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "infer/embedding_model.h"
#include "infer/engine.h"

namespace qiao {

// What a request's callback is given, once.
struct EncoderOutcome {
  std::vector<std::vector<float>> vectors;  // one an input, pooled; empty unless finish is kStop
  FinishReason finish = FinishReason::kStop;
  std::string error;  // with kError
  ErrorKind error_kind = ErrorKind::kIo;
  int64_t prompt_tokens = 0;
};

struct EncoderEngineOptions {
  int64_t batch_tokens = 2048;  // of one forward pass; raised to the longest sequence that the model takes
  int64_t max_queued = 16384;   // inputs
  // As EngineOptions'.
  DeviceLostListener on_device_lost;
};

// A lost device ends all requests that were taken, and is had again as Engine does it.
class EncoderEngine {
 public:
  using OnDone = std::function<void(const EncoderOutcome&)>;

  // Throws Error(kTooLarge), with both sizes, where a batch does not fit in memory.
  explicit EncoderEngine(std::shared_ptr<EmbeddingModel> model, const EncoderEngineOptions& options = {});
  ~EncoderEngine();  // cancels what waits

  // Checks the inputs (Error(kInvalidInput) naming one; kUnavailable where the queue is full, after drain and
  // where the device is lost) and queues them. on_done is called on the engine's thread and must return
  // quickly.
  std::shared_ptr<Generation> submit(std::vector<EncoderInput> inputs, OnDone on_done);

  // Takes no more requests; returns when those taken have finished.
  void drain();

  const EmbeddingModel& model() const;
  EngineStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao
