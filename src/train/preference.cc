#include "train/preference.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qiao::train {
namespace {

// log(1 + e^x), without overflow.
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

// Labels of a document.
int64_t label_count(const TokenBatch& batch, size_t document) {
  const auto begin = batch.labels.begin();
  return std::count_if(begin + batch.starts[document], begin + batch.starts[document + 1],
                       [](int32_t label) { return label >= 0; });
}

size_t common_messages(const Json& a, const Json& b) {
  size_t count = 0;
  while (count < a.size() && count < b.size() && a[count] == b[count]) ++count;
  return count;
}

}  // namespace

PreferenceLoss preference_loss(const PreferenceOptions& options, const PairLogprobs& policy,
                               const PairLogprobs& reference) {
  const double beta = options.beta, smoothing = options.label_smoothing;
  const double margin = (policy.chosen - policy.rejected) - (reference.chosen - reference.rejected);
  if (options.loss == "ipo") {
    const double off = margin - 1 / (2 * beta);
    return {off * off, 2 * off};
  }
  const double x = beta * margin;
  return {(1 - smoothing) * softplus(-x) + smoothing * softplus(x),
          beta * (smoothing * sigmoid(x) - (1 - smoothing) * sigmoid(-x))};
}

std::vector<Document> PairDocuments::make(const Row& row) {
  const Json& json = row.json;
  const auto has = [&](const char* key) {
    return json.is_object() && json.contains(key) && !json[key].is_null();
  };
  if (!has("chosen") || !has("rejected")) {
    throw_error(
        ErrorKind::kInvalidInput,
        R"("chosen" and "rejected" (strings, or lists of messages) were expected, with their "prompt")");
  }
  Json answers[2] = {read_text_or_messages(json["chosen"], "assistant", "chosen"),
                     read_text_or_messages(json["rejected"], "assistant", "rejected")};
  const char* key = has("prompt") ? "prompt" : "messages";
  Conversation conversation;
  if (has(key)) conversation.messages = read_text_or_messages(json[key], "user", key);
  if (has("system")) {
    const Json system = read_text_or_messages(json["system"], "system", "system");
    conversation.messages.insert(conversation.messages.begin(), system[0]);
  }
  read_tools(json, conversation);
  const size_t shared = has(key) ? 0 : common_messages(answers[0], answers[1]);
  if (conversation.messages.empty() && shared == 0)
    throw_error(ErrorKind::kInvalidInput, R"("prompt" (a string, or a list of messages) was expected)");
  std::vector<Document> documents;
  for (const Json& answer : answers) {
    Conversation whole = conversation;
    for (const Json& message : answer) whole.messages.push_back(message);
    whole.prompt = conversation.messages.size() + shared;
    documents.push_back(encoder_.encode(whole));
  }
  return documents;
}

Preference::Preference(DataStream& data, int64_t batch, int64_t micro_batch, const PreferenceOptions& options,
                       int64_t shares)
    : data_(data),
      batch_(batch),
      share_(batch / shares),
      micro_batch_(micro_batch > 0 ? std::min(micro_batch, share_) : share_),
      options_(options),
      sums_(static_cast<size_t>(shares) * kFigures) {}

int64_t Preference::tokens_of(int64_t part) const {
  return std::ssize(parts_[static_cast<size_t>(part)].batch.tokens);
}

std::vector<PairLogprobs> Preference::pairs_of(const TokenBatch& batch,
                                               std::span<const float> logprob) const {
  std::vector<PairLogprobs> pairs((batch.starts.size() - 1) / 2);
  for (size_t document = 0; document + 1 < batch.starts.size(); ++document) {
    double sum = 0;  // labels that are none have 0
    for (auto i = static_cast<size_t>(batch.starts[document]);
         i < static_cast<size_t>(batch.starts[document + 1]); ++i)
      sum += static_cast<double>(logprob[i]);
    if (options_.loss == "ipo") sum /= static_cast<double>(label_count(batch, document));
    PairLogprobs& pair = pairs[document / 2];
    (document % 2 == 0 ? pair.chosen : pair.rejected) = sum;
  }
  return pairs;
}

void Preference::begin_step(int64_t) {
  parts_.clear();
  std::ranges::fill(sums_, 0.0);
  for (int64_t left = batch_; left > 0; left -= share_) {
    for (int64_t done = 0; done < share_; done += micro_batch_)
      parts_.push_back({data_.next_rows(std::min(micro_batch_, share_ - done)), {}});
  }
}

PackedBatch Preference::part(int64_t index) {
  Part& part = parts_[static_cast<size_t>(index)];
  if (part.reference.empty()) part.reference = pairs_of(part.batch, reference_(part.batch.view()));
  return part.batch.view();
}

double Preference::loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) {
  const Part& part = parts_[static_cast<size_t>(index)];
  const std::vector<PairLogprobs> policy = pairs_of(part.batch, logprob);
  double* figures = &sums_[static_cast<size_t>(index * batch_ / (parts() * share_)) * kFigures];
  const auto count = static_cast<double>(batch_);
  double total = 0;
  for (size_t pair = 0; pair < policy.size(); ++pair) {
    const PairLogprobs& reference = part.reference[pair];
    const PreferenceLoss loss = preference_loss(options_, policy[pair], reference);
    total += loss.value / count;
    const double chosen = options_.beta * (policy[pair].chosen - reference.chosen);
    const double rejected = options_.beta * (policy[pair].rejected - reference.rejected);
    figures[0] += chosen;
    figures[1] += rejected;
    figures[2] += chosen > rejected ? 1 : 0;
    for (const size_t document : {2 * pair, 2 * pair + 1}) {
      double slope = (document % 2 == 0 ? 1 : -1) * loss.slope / count;
      if (options_.loss == "ipo") slope /= static_cast<double>(label_count(part.batch, document));
      for (auto i = static_cast<size_t>(part.batch.starts[document]);
           i < static_cast<size_t>(part.batch.starts[document + 1]); ++i)
        if (part.batch.labels[i] >= 0) dlogprob[i] = static_cast<float>(slope);
    }
  }
  return total;
}

Json Preference::report() const {
  const auto count = static_cast<double>(batch_);
  const auto total = [&](size_t figure) {
    std::vector<double> of_shares;
    for (size_t i = figure; i < sums_.size(); i += kFigures) of_shares.push_back(sums_[i]);
    return sum_of_shares(of_shares);
  };
  return {{"rewards/chosen", total(0) / count},
          {"rewards/rejected", total(1) / count},
          {"rewards/accuracies", total(2) / count},
          {"rewards/margins", (total(0) - total(1)) / count}};
}

}  // namespace qiao::train
