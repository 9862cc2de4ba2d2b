#include "parallel/gather_texts.h"

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

}  // namespace qiao
