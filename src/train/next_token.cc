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
int64_t NextToken::tokens_of(int64_t part) const {
  return std::ssize(parts_[static_cast<size_t>(part)].tokens);
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

void NextToken::slopes(int64_t index, std::span<float> dlogprob) const {
  const TokenBatch& batch = parts_[static_cast<size_t>(index)];
  const auto weight = static_cast<float>(-1.0 / static_cast<double>(labelled_));
  for (size_t i = 0; i < batch.labels.size(); ++i)
    if (batch.labels[i] >= 0) dlogprob[i] = weight;
}

double NextToken::loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) {
  slopes(index, dlogprob);
  double sum = 0;
  for (const float one : logprob) sum -= static_cast<double>(one);  // 0 where there is no label
  return sum / static_cast<double>(labelled_);
}

Json NextToken::state() const { return data_.state(); }
void NextToken::set_state(const Json& state) { data_.set_state(state); }

}  // namespace qiao::train
