#include "serve/answer.h"

namespace qiao::serve {

Answer::Answer(ServeContext& context, std::shared_ptr<HttpExchange> exchange, const GenerationFields& fields,
               std::string_view id_prefix)
    : context_(context),
      exchange_(std::move(exchange)),
      stream_(fields.stream),
      include_usage_(fields.include_usage),
      id_(random_id(id_prefix)),
      created_(unix_seconds()) {}

Json Answer::head(bool chunk) const {
  return {{"id", id_},
          {"object", object_name(chunk)},
          {"created", created_},
          {"model", model_name_},
          {"system_fingerprint", "qiao"}};
}

void Answer::write_chunk(Json choice) {
  Json chunk = head(true);
  chunk["choices"] = Json::array({std::move(choice)});
  if (include_usage_) chunk["usage"] = nullptr;
  exchange_->write(sse(chunk));
}

void Answer::start(std::vector<GenerationRequest> requests) {
  const auto group = std::make_shared<CancelGroup>();
  const std::lock_guard lock(mutex_);  // events wait until the answer has begun
  choices_.resize(requests.size());
  left_ = requests.size();
  model_name_ = context_.served_name(requests.front().adapter);
  for (size_t i = 0; i < requests.size(); ++i) choices_[i].text = leading_text(i);
  try {
    for (size_t i = 0; i < requests.size(); ++i) {
      group->add(context_.engine.submit(
          std::move(requests[i]),
          [self = shared_from_this(), i](const GenerationEvent& event) { self->on_event(i, event); }));
    }
  } catch (const Error&) {
    group->cancel();
    left_ = requests.size() + 1;  // the caller answers: the events of those cancelled must not
    throw;
  }
  if (stream_) {
    exchange_->begin(200, "text/event-stream; charset=utf-8", sse_headers());
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (Json first = first_choice(i); !first.is_null()) write_chunk(std::move(first));
    }
  }
  exchange_->on_close([group] { group->cancel(); });
}

void Answer::on_event(size_t index, const GenerationEvent& event) {
  const std::lock_guard lock(mutex_);
  Choice& choice = choices_[index];
  if (event.has_token) context_.metrics.count_token(choice.last_token);
  const bool last = event.finish != FinishReason::kNone;
  Json logprobs;
  if (wants_logprobs_ && (event.has_token || !event.prompt_logprobs.empty())) {
    add_logprobs(stream_ ? logprobs : choice.logprobs, index, event, choice.text);
  }
  choice.text += event.text;
  if (last) choice.finish = event.finish;
  if (stream_ && event.finish != FinishReason::kError && event.finish != FinishReason::kCancelled) {
    if (!event.text.empty() || !logprobs.is_null()) {
      write_chunk(chunk_choice(index, event.text, logprobs, FinishReason::kNone));
    }
    if (last) write_chunk(chunk_choice(index, "", nullptr, event.finish));
  }
  if (!last) return;
  context_.metrics.count_generation(event);
  // Choices of one prompt count its tokens once.
  if (leads_prompt(index)) {
    usage_.prompt_tokens += event.prompt_tokens;
    usage_.cached_tokens += event.cached_tokens;
  }
  usage_.completion_tokens += event.completion_tokens;
  if (event.finish == FinishReason::kError) error_ = to_api_error(Error(event.error_kind, event.error));
  if (--left_ == 0) finish_all();
}

void Answer::finish_all() {
  if (error_) {
    const Json error = error_->to_json();
    if (stream_) {
      exchange_->write(sse(error));
      exchange_->end();
    } else {
      exchange_->send(error_->status(), "application/json", dump_json(error));
    }
    return;
  }
  if (stream_) {
    if (include_usage_) {
      Json chunk = head(true);
      chunk["choices"] = Json::array();
      chunk["usage"] = usage_.to_json();
      exchange_->write(sse(chunk));
    }
    exchange_->write(kSseDone);
    exchange_->end();
    return;
  }
  Json whole = head(false);
  Json list = Json::array();
  for (size_t i = 0; i < choices_.size(); ++i) list.push_back(whole_choice(i, choices_[i]));
  whole["choices"] = std::move(list);
  whole["usage"] = usage_.to_json();
  send_json(exchange_, whole);
}

}  // namespace qiao::serve
