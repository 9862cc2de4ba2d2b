#include "cli/generation_runner.h"

#include <csignal>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace qiao::cli {
namespace {

volatile std::sig_atomic_t g_interrupted = 0;  // what a signal handler may touch
struct sigaction g_previous {};

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  reset();
  struct sigaction action {};
  action.sa_handler = [](int) { g_interrupted = 1; };
  sigemptyset(&action.sa_mask);  // no SA_RESTART: a read of the terminal returns
  sigaction(SIGINT, &action, &g_previous);
}

InterruptGuard::~InterruptGuard() { sigaction(SIGINT, &g_previous, nullptr); }
bool InterruptGuard::interrupted() { return g_interrupted != 0; }
void InterruptGuard::reset() { g_interrupted = 0; }

GenerationResult run_generation(Engine& engine, GenerationRequest request,
                                const std::function<void(std::string_view)>& on_text) {
  // Shared with the callback, which may outlive this call where on_text throws.
  struct Inbox {
    std::mutex mutex;
    std::condition_variable arrived;
    std::deque<GenerationEvent> events;
  };
  const auto inbox = std::make_shared<Inbox>();
  const bool logprobs = request.logprobs;
  const auto generation = engine.submit(std::move(request), [inbox](const GenerationEvent& event) {
    const std::lock_guard lock(inbox->mutex);
    inbox->events.push_back(event);
    inbox->arrived.notify_one();
  });
  GenerationResult result;
  while (true) {
    GenerationEvent event;
    {
      std::unique_lock lock(inbox->mutex);
      // A signal handler cannot notify: look at its flag now and then.
      while (!inbox->arrived.wait_for(lock, std::chrono::milliseconds(50),
                                      [&] { return !inbox->events.empty(); })) {
        if (InterruptGuard::interrupted()) generation->cancel();
      }
      event = std::move(inbox->events.front());
      inbox->events.pop_front();
    }
    if (InterruptGuard::interrupted()) generation->cancel();
    if (event.has_token) {
      result.tokens.push_back(event.token);
      if (logprobs) result.logprobs.push_back(event.logprobs);
    }
    if (!event.text.empty()) {
      result.text += event.text;
      on_text(event.text);
    }
    if (event.finish == FinishReason::kNone) continue;
    if (event.finish == FinishReason::kError) throw_error(ErrorKind::kUnsupported, "{}", event.error);
    result.last = std::move(event);
    return result;
  }
}

std::string_view finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
    case FinishReason::kNone:
      break;
  }
  return "";
}

Json to_json(const GenerationResult& result, const Tokenizer& tokenizer) {
  const GenerationEvent& last = result.last;
  Json json;
  json["text"] = result.text;
  json["tokens"] = result.tokens;
  if (!result.logprobs.empty()) {
    Json list = Json::array();
    for (size_t i = 0; i < result.tokens.size(); ++i) {
      Json entry = {{"token", tokenizer.token_bytes(result.tokens[i])},
                    {"id", result.tokens[i]},
                    {"logprob", result.logprobs[i].logprob}};
      Json top = Json::array();
      for (const auto& [id, logprob] : result.logprobs[i].top) {
        top.push_back({{"token", tokenizer.token_bytes(id)}, {"id", id}, {"logprob", logprob}});
      }
      entry["top_logprobs"] = std::move(top);
      list.push_back(std::move(entry));
    }
    json["logprobs"] = std::move(list);
  }
  json["finish_reason"] = finish_name(last.finish);
  json["usage"] = {{"prompt_tokens", last.prompt_tokens},
                   {"cached_tokens", last.cached_tokens},
                   {"completion_tokens", last.completion_tokens}};
  json["timings"] = {
      {"prefill_seconds", last.prefill_seconds},
      {"prefill_tokens_per_second", rate(last.prompt_tokens - last.cached_tokens, last.prefill_seconds)},
      {"decode_seconds", last.decode_seconds},
      {"decode_tokens_per_second", rate(last.completion_tokens - 1, last.decode_seconds)}};
  return json;
}

std::string statistics(const GenerationEvent& last) {
  const std::string cached = last.cached_tokens > 0 ? fmt::format(" ({} cached)", last.cached_tokens) : "";
  return fmt::format("{} tokens, {:.1f} tokens/s; prompt {} tokens{}, first token after {:.2f} s",
                     last.completion_tokens, rate(last.completion_tokens - 1, last.decode_seconds),
                     last.prompt_tokens, cached, last.prefill_seconds);
}

}  // namespace qiao::cli
