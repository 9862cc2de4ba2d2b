#include "train/taught.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "base/error.h"

namespace qiao::train {
namespace {

// Of a completion; its tokens follow, their log-probabilities, and a byte of each that says whether it was
// drawn.
struct TaughtHead {
  double advantage = 0;
  uint64_t prompt = 0;
  int64_t index = 0, prompt_tokens = 0, tokens = 0;
};

template <typename T>
void put(std::string& bytes, std::span<const T> values) {
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

template <typename T>
void take(std::string_view& bytes, std::span<T> values) {
  QIAO_ASSERT(bytes.size() >= values.size_bytes());
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size_bytes());
  bytes.remove_prefix(values.size_bytes());
}

Taught take_taught(std::string_view& bytes) {
  TaughtHead head;
  take(bytes, std::span(&head, 1));
  const auto count = static_cast<size_t>(head.tokens);
  Taught taught;
  taught.advantage = head.advantage;
  Trajectory& trajectory = taught.trajectory;
  trajectory.prompt = head.prompt;
  trajectory.index = head.index;
  trajectory.prompt_tokens = head.prompt_tokens;
  trajectory.tokens.resize(count);
  trajectory.logprob.resize(count);
  std::vector<char> drawn(count);
  take(bytes, std::span(trajectory.tokens));
  take(bytes, std::span(trajectory.logprob));
  take(bytes, std::span(drawn));
  trajectory.drawn.assign(drawn.begin(), drawn.end());
  trajectory.drawn_tokens = std::ranges::count(trajectory.drawn, true);
  return taught;
}

}  // namespace

std::string bytes_of(const std::vector<std::vector<Taught>>& of_shares) {
  std::string bytes;
  const auto shares = static_cast<uint64_t>(of_shares.size());
  put(bytes, std::span(&shares, 1));
  for (const std::vector<Taught>& of_share : of_shares) {
    const auto count = static_cast<uint64_t>(of_share.size());
    put(bytes, std::span(&count, 1));
    for (const auto& [trajectory, advantage, reference] : of_share) {
      const TaughtHead head = {advantage, trajectory.prompt, trajectory.index, trajectory.prompt_tokens,
                               std::ssize(trajectory.tokens)};
      const std::vector<char> drawn(trajectory.drawn.begin(), trajectory.drawn.end());
      put(bytes, std::span(&head, 1));
      put(bytes, std::span(trajectory.tokens));
      put(bytes, std::span(trajectory.logprob));
      put(bytes, std::span(drawn));
    }
  }
  return bytes;
}

std::vector<std::vector<Taught>> taught_of(std::string_view bytes) {
  uint64_t count = 0;
  take(bytes, std::span(&count, 1));
  std::vector<std::vector<Taught>> of_shares(count);
  for (std::vector<Taught>& of_share : of_shares) {
    take(bytes, std::span(&count, 1));
    for (uint64_t i = 0; i < count; ++i) of_share.push_back(take_taught(bytes));
  }
  QIAO_ASSERT(bytes.empty());
  return of_shares;
}

}  // namespace qiao::train
