#include "train/next_token.h"

#include <algorithm>

namespace qiao::train {

NextToken::NextToken(DataStream& data, int64_t batch, int64_t micro_batch, int64_t shares)
    : data_(data),
      batch_(batch),
      share_(batch / shares),
      micro_batch_(micro_batch > 0 ? std::min(micro_batch, share_) : share_) {}

int64_t NextToken::most_tokens() const { return micro_batch_ * data_.sequence(); }
int64_t NextToken::most_documents() const { return most_tokens() / 2 + micro_batch_; }
int64_t NextToken::tokens() const {
  int64_t tokens = 0;
  for (const TokenBatch& part : parts_) tokens += std::ssize(part.tokens);
  return tokens;
}

void NextToken::begin_step(int64_t) {
  parts_.clear();
  labelled_ = 0;
  for (int64_t left = batch_; left > 0; left -= share_) {
    for (int64_t done = 0; done < share_; done += micro_batch_) {
      parts_.push_back(data_.next(std::min(micro_batch_, share_ - done)));
      labelled_ += parts_.back().labelled;
    }
  }
  labelled_ = std::max<int64_t>(labelled_, 1);
}

double NextToken::loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) {
  const TokenBatch& batch = parts_[static_cast<size_t>(index)];
  const auto weight = static_cast<float>(-1.0 / static_cast<double>(labelled_));
  double sum = 0;
  for (size_t i = 0; i < batch.labels.size(); ++i) {
    sum -= static_cast<double>(logprob[i]);  // 0 where there is no label
    if (batch.labels[i] >= 0) dlogprob[i] = weight;
  }
  return sum / static_cast<double>(labelled_);
}

Json NextToken::state() const { return to_json(data_.position()); }
void NextToken::set_state(const Json& state) { data_.set_position(read_position(state)); }

}  // namespace qiao::train
