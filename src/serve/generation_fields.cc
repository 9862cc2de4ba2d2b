#include "serve/generation_fields.h"

#include <charconv>
#include <chrono>
#include <random>

namespace qiao::serve {
namespace {

constexpr size_t kMaxBiases = 1024;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 4096;

std::vector<std::pair<TokenId, float>> read_logit_bias(Fields& fields, int64_t vocabulary) {
  const Json* value = fields.find("logit_bias");
  if (value == nullptr) return {};
  if (!value->is_object()) {
    throw_bad_field("logit_bias", "expected an object of token ids and numbers, got {}", value->type_name());
  }
  if (value->size() > kMaxBiases) {
    throw_bad_field("logit_bias", "has {} entries; at most {} are allowed", value->size(), kMaxBiases);
  }
  std::vector<std::pair<TokenId, float>> biases;
  for (const auto& [key, bias] : value->items()) {
    TokenId id = -1;
    const auto [end, problem] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (problem != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocabulary) {
      throw_bad_field("logit_bias", "key {:?} is not a token id below {}", key.substr(0, 40), vocabulary);
    }
    if (!bias.is_number() || !(bias.get<double>() >= -100.0 && bias.get<double>() <= 100.0)) {
      throw_bad_field("logit_bias", "the bias of token {} must be a number from -100 to 100", id);
    }
    biases.emplace_back(id, bias.get<float>());
  }
  return biases;
}

}  // namespace

GenerationFields read_generation_fields(Fields& fields, const LanguageModel& model) {
  GenerationFields out;
  SamplingOptions& sampling = out.sampling;
  sampling = model.recommended_sampling();
  const auto number = [&](std::string_view name, float& value, double least, double most) {
    if (const auto given = fields.number(name, least, most)) value = static_cast<float>(*given);
  };
  number("temperature", sampling.temperature, 0, 2);
  number("top_p", sampling.top_p, 0, 1);
  number("min_p", sampling.min_p, 0, 1);
  number("repetition_penalty", sampling.repetition_penalty, 0.01, 100);
  number("repeat_penalty", sampling.repetition_penalty, 0.01, 100);
  number("frequency_penalty", sampling.frequency_penalty, -2, 2);
  number("presence_penalty", sampling.presence_penalty, -2, 2);
  if (const auto k = fields.integer("top_k", -1, INT32_MAX))
    sampling.top_k = static_cast<int32_t>(std::max<int64_t>(*k, 0));
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
  sampling.logit_bias = read_logit_bias(fields, model.config().vocabulary_size);
  out.stop = fields.texts("stop", kMaxStops);
  for (const std::string& stop : out.stop) {
    if (stop.size() > kMaxStopBytes)
      throw_bad_field("stop", "a text of {} bytes; at most {} are allowed", stop.size(), kMaxStopBytes);
  }
  out.n = fields.integer("n", 1, kMaxChoices).value_or(1);
  out.stream = fields.flag("stream", false);
  if (const Json* options = fields.find("stream_options")) {
    if (!out.stream) throw_bad_field("stream_options", "is only allowed with stream");
    Fields inner(*options, "stream_options.");
    out.include_usage = inner.flag("include_usage", false);
    inner.ignore({"include_obfuscation", "continuous_usage_stats"});
    inner.finish();
  }
  out.ignore_eos = fields.flag("ignore_eos", false);
  fields.ignore({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                 "prompt_cache_retention", "cache_prompt", "verbosity"});
  return out;
}

Json finish_reason_json(FinishReason reason) {
  if (reason == FinishReason::kStop) return "stop";
  if (reason == FinishReason::kLength) return "length";
  return nullptr;
}

Json Usage::to_json() const {
  Json json = {{"prompt_tokens", prompt_tokens},
               {"completion_tokens", completion_tokens},
               {"total_tokens", prompt_tokens + completion_tokens},
               {"prompt_tokens_details", {{"cached_tokens", cached_tokens}}}};
  if (reasoning_tokens) json["completion_tokens_details"] = {{"reasoning_tokens", *reasoning_tokens}};
  return json;
}

std::string sse(const Json& json) { return "data: " + dump_json(json) + "\n\n"; }

std::string sse_event(std::string_view name, const Json& json) {
  return fmt::format("event: {}\n{}", name, sse(json));
}

HttpHeaders sse_headers() { return {{"cache-control", "no-cache"}, {"x-accel-buffering", "no"}}; }

void CancelGroup::add(std::shared_ptr<Generation> generation) {
  const std::lock_guard lock(mutex_);
  if (cancelled_) generation->cancel();
  generations_.push_back(std::move(generation));
}

void CancelGroup::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  for (const auto& generation : generations_) generation->cancel();
}

std::string random_id(std::string_view prefix) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string id(prefix);
  for (int i = 0; i < 24; ++i) id += kAlphabet[random() % kAlphabet.size()];
  return id;
}

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace qiao::serve
