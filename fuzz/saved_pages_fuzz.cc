// Any bytes as a file of saved pages: parsed, or refused with an Error. Checksums stop most mutations, so the
// bytes are also taken as the pages of a file whose checksums are right.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "infer/saved_pages_file.h"

namespace {

const qiao::SavedPagesKind kKind = {std::string(64, 'a'), 2, 8, 4, 100};

void parse(std::string_view bytes) {
  try {
    const auto data = std::as_bytes(std::span(bytes.data(), bytes.size()));
    const qiao::SavedPagesFile file = qiao::parse_saved_pages(data, "fuzz", kKind);
    for (size_t i = 0; i < file.pages.size(); ++i) {
      QIAO_ASSERT(file.pages[i].parent < static_cast<int64_t>(i) && file.pages[i].contents.size() == 8);
      for (const qiao::TokenId id : file.pages[i].tokens) QIAO_ASSERT(id >= 0 && id < 100);
    }
    for (const qiao::SavedSlidingPage& page : file.sliding)
      QIAO_ASSERT(page.beside < std::ssize(file.pages) && page.contents.size() == 4);
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  parse(bytes);
  constexpr size_t kPage = 4;  // a parent, a tenant's digit and two tokens; what is left: sliding pages
  std::string file = qiao::saved_pages_header(kKind, std::string(32, '0'), static_cast<int64_t>(size / kPage),
                                              static_cast<int64_t>(size % kPage));
  for (size_t i = 0; i + kPage <= size; i += kPage) {
    const std::string tenant(64, static_cast<char>(bytes[i + 1]));
    file += qiao::saved_page_record(
        {static_cast<int8_t>(bytes[i]), tenant, {bytes[i + 2], bytes[i + 3]}, "contents"});
  }
  for (const char beside : bytes.substr(size - size % kPage))
    file += qiao::saved_page_record(qiao::SavedSlidingPage{beside, "part"});
  parse(file);
  return 0;
}
