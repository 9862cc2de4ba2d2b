#include "parallel/gather_texts.h"

#include <algorithm>

namespace qiao {

std::vector<std::string> gather_texts(Communicator& communicator, const std::string& own) {
  auto length = static_cast<int64_t>(own.size());
  if (communicator.rank() > 0) {
    communicator.send_values(0, std::span<const int64_t>(&length, 1));
    communicator.send_values(0, std::span<const char>(own));
    return {};
  }
  std::vector<std::string> texts = {own};
  for (int other = 1; other < communicator.size(); ++other) {
    communicator.receive_values(other, std::span(&length, 1));
    texts.emplace_back(static_cast<size_t>(length), '\0');
    communicator.receive_values(other, std::span<char>(texts.back()));
  }
  return texts;
}

std::string text_of_first(Communicator& communicator, std::string own) {
  constexpr size_t kMostAtOnce = size_t{1} << 30;  // a message has less than 2^31 bytes
  auto length = static_cast<int64_t>(own.size());
  if (communicator.rank() > 0) {
    communicator.receive_values(0, std::span(&length, 1));
    own.resize(static_cast<size_t>(length));
  }
  for (int other = 1; communicator.rank() == 0 && other < communicator.size(); ++other)
    communicator.send_values(other, std::span<const int64_t>(&length, 1));
  for (size_t at = 0; at < own.size(); at += kMostAtOnce) {
    const std::span<char> piece = std::span<char>(own).subspan(at, std::min(kMostAtOnce, own.size() - at));
    if (communicator.rank() > 0) communicator.receive_values(0, piece);
    for (int other = 1; communicator.rank() == 0 && other < communicator.size(); ++other)
      communicator.send_values(other, std::span<const char>(piece));
  }
  return own;
}

}  // namespace qiao
