// Any bytes as a tokenizer.json, and as a text for the tokenizer that they make: an Error or ids of its
// vocabulary.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = qiao::Tokenizer::from_json(
        qiao::parse_json(text, "fuzz", {.max_bytes = size_t{1} << 20}), {}, "fuzz");
    // The file's own bytes from its end, so that texts vary with the input; broken UTF-8 included.
    std::string sample(text.substr(size - std::min<size_t>(size, 64)));
    sample += "Hello  world\xF0\x9F\x99\x82 \xFF\xC3 123\n";
    const std::vector<qiao::TokenId> ids = tokenizer->encode(sample, {.add_special = true});
    for (const qiao::TokenId id : ids) QIAO_ASSERT(id >= 0 && id < tokenizer->vocabulary_size());
    tokenizer->decode(ids, false);
    qiao::StreamDecoder stream(*tokenizer);
    for (const qiao::TokenId id : ids) stream.push(id);
    stream.finish();
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
