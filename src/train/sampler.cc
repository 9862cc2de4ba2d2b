#include "train/sampler.h"

#include <future>

#include "base/error.h"
#include "train/first_leads.h"

namespace qiao::train {

Sampler::Sampler(const ModelFiles& files, std::shared_ptr<const Decoder> decoder, const Ranks& ranks,
                 const SampleOptions& options, uint64_t seed)
    : ranks_(ranks), options_(options), seed_(seed) {
  model_ = LanguageModel::wrap(files, std::move(decoder));
  prompt_ = model_->encode_prompt(options.prompt);
  if (prompt_.empty()) {  // a text's beginning, which a document's end stands before
    const auto first = model_->tokenizer().bos() ? model_->tokenizer().bos() : model_->tokenizer().eos();
    if (!first) {
      throw_error(ErrorKind::kInvalidInput,
                  "--sample-prompt is empty; the model has no token that begins a text, so one was expected");
    }
    prompt_.push_back(*first);
  }
  const int64_t context = model_->decoder().config().max_position_embeddings;
  if (std::ssize(prompt_) + options.tokens > context) {
    throw_error(
        ErrorKind::kInvalidInput,
        "--sample-prompt has {} tokens and --sample-tokens is {}; no more than the model's context of {} "
        "together was expected",
        prompt_.size(), options.tokens, context);
  }
  EngineOptions engine;
  engine.context = std::ssize(prompt_) + options.tokens;
  engine.batch_tokens = std::min<int64_t>(std::ssize(prompt_), 64);
  engine.kv_dtype = model_->decoder().packed_kv_dtype();  // as training attends
  engine.prefix_cache = false;                            // of weights that change
  first_leads(&ranks_, model_->decoder(), [&] { engine_ = std::make_unique<Engine>(model_, engine); });
  sample(0);  // its memory is in use now
}

std::string Sampler::sample(int64_t step) {
  std::string text;
  first_leads(&ranks_, model_->decoder(), [&] { text = draw(step); });
  return text;
}

std::string Sampler::draw(int64_t step) {
  GenerationRequest request;
  request.prompt = prompt_;
  request.max_tokens = options_.tokens;
  if (!model_->adapters().empty()) request.adapter = model_->adapters().front().name;
  request.sampling.seed = seed_ + static_cast<uint64_t>(step);
  std::string text;
  std::promise<std::string> error;
  engine_->submit(request, [&](const GenerationEvent& event) {
    text += event.text;
    if (event.finish != FinishReason::kNone) error.set_value(event.error);
  });
  if (const std::string why = error.get_future().get(); !why.empty())
    throw_error(ErrorKind::kIo, "sample of step {}: {}", step, why);
  return text;
}

}  // namespace qiao::train
