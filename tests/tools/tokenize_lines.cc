// For the differential tests: tokenize_lines FILE [special] [plain] reads one base64 text a line and prints
// one line
// {"ids": […], "text": base64 of the decoded ids} for each. "special" adds BOS and EOS, "plain" parses no
// special tokens. "time" prints the milliseconds of each encoding instead. FILE is a .gguf or a
// tokenizer.json.
#include <cstdio>
#include <ctime>
#include <iostream>
#include <string>

#include "base/file.h"
#include "base/json.h"
#include "formats/gguf.h"
#include "text/normalizer.h"
#include "text/tokenizer.h"

namespace {

std::string encode_base64(const std::string& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k)
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k)
      out.push_back(i + k > bytes.size() ? '=' : kDigits[(bits >> (18 - 6 * k)) & 63]);
  }
  return out;
}

std::unique_ptr<qiao::Tokenizer> open(const std::string& path) {
  if (path.ends_with(".gguf")) return qiao::Tokenizer::from_gguf(qiao::GgufFile::open(path)->metadata());
  return qiao::Tokenizer::from_json(qiao::parse_json(qiao::read_file(path), path), qiao::Json(), path);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) return 2;
  qiao::EncodeOptions options;
  bool time = false;
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "special") options.add_special = true;
    if (flag == "plain") options.parse_special = false;
    if (flag == "time") time = true;
  }
  const auto started = std::clock();
  const auto tokenizer = open(argv[1]);
  // Of the processor: other programs on the machine do not count.
  const auto milliseconds = [](std::clock_t since) {
    return static_cast<double>(std::clock() - since) * 1000 / CLOCKS_PER_SEC;
  };
  if (time) std::printf("load %.0f ms\n", milliseconds(started));
  for (std::string line; std::getline(std::cin, line);) {
    const std::string text = qiao::tokenization::decode_base64(line, "standard input");
    const auto begin = std::clock();
    const auto ids = tokenizer->encode(text, options);
    if (time) {
      std::printf("%zu bytes, %zu ids: %.0f ms\n", text.size(), ids.size(), milliseconds(begin));
      continue;
    }
    const qiao::Json answer = {{"ids", ids},
                               {"text", encode_base64(tokenizer->decode(ids, !options.add_special))}};
    std::printf("%s\n", qiao::dump_json(answer).c_str());
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "tokenize_lines: %s\n", e.what());
  return 1;
}
