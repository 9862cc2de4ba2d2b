// Any bytes as a row of training data: documents whose masks fit their tokens, or an Error.
#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "base/error.h"
#include "train/chat_encoder.h"
#include "train/preference.h"

namespace {

using namespace qiao::train;

struct Makers {
  std::shared_ptr<qiao::ModelFiles> files =
      qiao::ModelFiles::open(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "chat");
  std::unique_ptr<qiao::Tokenizer> tokenizer = qiao::Tokenizer::from_model(*files);
  ChatDocuments chats{ChatEncoder(*files, tokenizer.get(), {.now = 0}),
                      PlainDocuments(tokenizer.get(), tokenizer->vocabulary_size())};
  PairDocuments pairs{ChatEncoder(*files, tokenizer.get(), {.now = 0})};
};

void make(DocumentMaker& maker, const qiao::Json& json) {
  try {
    for (const Document& document : maker.make({json}))
      QIAO_ASSERT(document.learned.empty() || document.learned.size() == document.tokens.size());
  } catch (const qiao::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Makers makers;
  qiao::Json json;
  try {
    json = qiao::parse_json({reinterpret_cast<const char*>(data), size}, "row", {.max_bytes = 1 << 16});
  } catch (const qiao::Error&) {
    return 0;
  }
  make(makers.chats, json);
  make(makers.pairs, json);
  return 0;
}
