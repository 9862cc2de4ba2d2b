// Any bytes as one of the small files of a model, beside good ones: the first byte says which. Refused with
// an Error of one line, or read: the configuration, the tokenizer, the chat template, the pooling.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"
#include "formats/model_files.h"
#include "models/config.h"
#include "models/encoder_config.h"
#include "models/pooling.h"
#include "text/tokenizer.h"

namespace {

namespace fs = std::filesystem;

// A folder of links to a golden model's files; removed when the process ends.
class Folder {
 public:
  explicit Folder(const char* golden) {
    std::string name = fs::temp_directory_path() / "qiao-fuzz-XXXXXX";
    QIAO_ASSERT(::mkdtemp(name.data()) != nullptr);
    path_ = name;
    for (const auto& entry : fs::directory_iterator(fs::path(QIAO_TEST_DATA) / "golden" / golden)) {
      const fs::path there = path_ / entry.path().filename();
      if (entry.is_directory()) {
        fs::copy(entry.path(), there);
      } else {
        fs::create_symlink(entry.path(), there);
      }
    }
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void read(const fs::path& path) {
  const auto files = qiao::ModelFiles::open(path, {.need_weights = false, .need_usable = false});
  if (qiao::is_encoder(*files)) {
    const qiao::EncoderConfig config = qiao::read_encoder_config(*files);
    QIAO_ASSERT(config.hidden_size > 0 && config.num_hidden_layers >= 0);
    QIAO_ASSERT(qiao::read_pooling(*files, config).max_tokens > 0);
  } else {
    const qiao::DecoderConfig config = qiao::read_decoder_config(*files);
    QIAO_ASSERT(config.hidden_size > 0 && config.head_dim > 0);
    QIAO_ASSERT(config.layer_slides.size() == static_cast<size_t>(config.num_hidden_layers));
  }
  files->chat_template();
  if (files->kind() == qiao::ModelFiles::Kind::kGguf) {
    qiao::Tokenizer::from_gguf(files->metadata());
  } else {
    files->generation_config();
    qiao::Tokenizer::from_json(files->tokenizer_json(), files->tokenizer_config(), "fuzz");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder decoder("chat"), encoder("encoders/roberta");
  const struct {
    const Folder& folder;
    const char* file;
  } places[] = {{decoder, "config.json"},
                {decoder, "tokenizer_config.json"},
                {decoder, "generation_config.json"},
                {decoder, "special_tokens_map.json"},
                {decoder, "chat_template.json"},
                {encoder, "config.json"},
                {encoder, "modules.json"},
                {encoder, "1_Pooling/config.json"},
                {encoder, "2_Dense/config.json"},
                {encoder, "sentence_bert_config.json"}};
  if (size == 0) return 0;
  const size_t pick = data[0] % (std::size(places) + 1);
  const bool gguf = pick == std::size(places);
  const fs::path folder = gguf ? decoder.path() : places[pick].folder.path();
  const fs::path file = folder / (gguf ? "fuzz.gguf" : places[pick].file), aside = file.string() + ".aside";
  const bool was_there = fs::is_symlink(file) || fs::exists(file);
  if (was_there) fs::rename(file, aside);
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(data) + 1, static_cast<std::streamsize>(size - 1));
  try {
    read(gguf ? file : folder);
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
  fs::remove(file);
  if (was_there) fs::rename(aside, file);
  return 0;
}
