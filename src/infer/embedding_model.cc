#include "infer/embedding_model.h"

#include <algorithm>

#include "base/error.h"
#include "text/unicode.h"

namespace qiao {

bool EmbeddingModel::is_at(const std::filesystem::path& path) { return is_encoder(*ModelFiles::open(path)); }

std::shared_ptr<EmbeddingModel> EmbeddingModel::load(const std::filesystem::path& path,
                                                     const LanguageModelOptions& options) {
  const std::shared_ptr<EmbeddingModel> model(new EmbeddingModel);
  const std::shared_ptr<ModelFiles> files = model->files_ = ModelFiles::open(path);
  const std::filesystem::path clean = std::filesystem::absolute(path / "").lexically_normal().parent_path();
  model->path_ = path;
  model->name_ = clean.extension() == ".gguf" ? clean.stem().string() : clean.filename().string();
  model->tokenizer_ = Tokenizer::from_model(*files);
  model->options_ = options;
  model->load_chip();
  model->options_.decoder.progress = nullptr;  // the caller's, and of this loading
  model->config_ = model->encoder_->config();
  model->pooling_ = read_pooling(*files, model->config_);
  const int64_t vocabulary = model->config_.vocabulary_size;
  model->tokenizer_->require_fit(vocabulary, path.string());
  const std::vector<TokenId> frame = model->tokenizer_->encode("", {.add_special = true});
  model->special_at_end_ = frame.empty() ? 0 : frame.size() - 1;  // the first of them stands in front
  if (files->kind() == ModelFiles::Kind::kHuggingFace && model->pooling_.scores) {
    const Json& json = files->tokenizer_json();
    const auto processor = json.find("post_processor");
    model->pair_frame_ = parse_pair_frame(processor == json.end() ? Json() : *processor, vocabulary,
                                          (path / "tokenizer.json").string());
  }
  return model;
}

void EmbeddingModel::drop_chip() {
  encoder_.reset();
  backend_.reset();
}

void EmbeddingModel::load_chip() {
  backend_ = make_backend(options_.device, {.threads = options_.threads, .fast = options_.fast});
  if (options_.device == "auto") options_.device = backend_->chip();  // another one has other bits
  encoder_ = Encoder::load(*files_, *backend_, options_.decoder);
}

std::string EmbeddingModel::prepared(std::string_view text) const {
  return pooling_.lowercase ? tokenization::lowercase(text) : std::string(text);
}

EncoderInput EmbeddingModel::encode(std::string_view text) const {
  return {tokenizer_->encode(prepared(text), {.add_special = true, .parse_special = true}), {}};
}

void EmbeddingModel::truncate(EncoderInput& input, int64_t max_tokens) const {
  const auto most = static_cast<size_t>(max_tokens);
  if (input.tokens.size() <= most) return;
  const auto kept = static_cast<std::ptrdiff_t>(std::min(special_at_end_, most));
  std::copy(input.tokens.end() - kept, input.tokens.end(),
            input.tokens.begin() + static_cast<std::ptrdiff_t>(most) - kept);
  input.tokens.resize(most);
}

std::vector<TokenId> EmbeddingModel::encode_plain(std::string_view text) const {
  return tokenizer_->encode(prepared(text), {.parse_special = true});
}

EncoderInput EmbeddingModel::encode_pair(std::vector<TokenId> first, std::vector<TokenId> second,
                                         int64_t max_tokens) const {
  if (!pair_frame_) {
    throw_error(ErrorKind::kUnsupported, "{}: the model does not say how two texts are put together",
                path_.string());
  }
  PairFrame::Encoded pair = pair_frame_->join(std::move(first), std::move(second), max_tokens);
  // DistilBERT's tokenizers are BERT's, whose second text has a type that the model does not have.
  if (config_.type_vocabulary_size < 2) pair.types.clear();
  return {std::move(pair.tokens), std::move(pair.types)};
}

}  // namespace qiao
