// Any bytes as a model's answer. The first byte chooses the form of calls, the second how the answer is cut
// as it arrives; put together, the events are the same as of the whole.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "../tests/chat/chat_support.h"
#include "base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace qiao::chat;
  static const auto formats = [] {
    std::vector<ChatFormat> list;
    for (const std::string& name : testing::call_templates()) list.push_back(testing::format_of(name));
    return list;
  }();
  if (size < 2) return 0;
  const ChatFormat& format = formats[data[0] % formats.size()];
  const Thoughts thoughts = data[1] % 2 == 0 ? Thoughts::kMaybe : Thoughts::kOpen;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  std::vector<std::string_view> pieces;
  for (size_t at = 0, step = 1 + data[1] % 7; at < text.size(); at += step)
    pieces.push_back(text.substr(at, step));
  const auto tools = testing::test_tools();
  QIAO_ASSERT(testing::parse_pieces(format, pieces, tools, thoughts) ==
              testing::parse_whole(format, text, tools, thoughts));
  return 0;
}
