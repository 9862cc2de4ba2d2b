#include "infer/language_model.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "models/lora_files.h"
#include "parallel/communicator.h"
#include "text/chat_text.h"
#include "text/chat_variables.h"

namespace qiao {
namespace {

std::string model_name(const std::filesystem::path& path) {
  const std::filesystem::path clean = std::filesystem::absolute(path).lexically_normal();
  if (clean.extension() == ".gguf") return clean.stem().string();
  return clean.has_filename() ? clean.filename().string() : clean.parent_path().filename().string();
}

// Returns their keys.
std::vector<std::string> load_adapters(const std::vector<AdapterSource>& adapters, Decoder& decoder) {
  constexpr size_t kMostBytes = 200;
  std::vector<std::string> keys;
  for (auto adapter = adapters.begin(); adapter != adapters.end(); ++adapter) {
    const std::string& name = adapter->name;
    const bool plain = std::ranges::none_of(name, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
    if (name.empty() || name.size() > kMostBytes || !plain) {
      throw_error(ErrorKind::kInvalidInput,
                  "adapter name {}: 1 to {} bytes without control characters were expected", quote_text(name),
                  kMostBytes);
    }
    if (std::ranges::find(adapters.begin(), adapter, name, &AdapterSource::name) != adapter)
      throw_error(ErrorKind::kInvalidInput, "adapter name {} is given twice", quote_text(name));
    const std::unique_ptr<LoraFiles> files = LoraFiles::open(adapter->path);
    decoder.add_adapter(*files);
    keys.push_back(fmt::format("{} {:016x}", name, files->fingerprint()));
  }
  return keys;
}

}  // namespace

std::shared_ptr<LanguageModel> LanguageModel::load(const std::filesystem::path& path,
                                                   const LanguageModelOptions& options) {
  const std::shared_ptr<LanguageModel> model(new LanguageModel);
  model->files_ = ModelFiles::open(path);
  model->read(*model->files_, options.chat_template_file);
  model->options_ = options;
  model->load_chip();
  model->fit_tokenizer();
  model->adapters_ = options.adapters;
  // The caller's, and of this loading.
  model->options_.decoder.progress = nullptr;
  model->options_.decoder.laid_out = nullptr;
  return model;
}

void LanguageModel::drop_chip() {
  decoder_.reset();
  backend_.reset();
}

void LanguageModel::load_chip() {
  if (files_ == nullptr) throw_error(ErrorKind::kUnsupported, "the model's weights are somebody else's");
  const bool loaded_before = config_.vocabulary_size > 0;
  if (loaded_before && options_.decoder.ranks != nullptr && options_.decoder.ranks->size() > 1)
    throw_error(ErrorKind::kUnsupported, "of several processes each has a part of the model");
  backend_ =
      make_backend(options_.device,
                   {.threads = options_.threads, .device = options_.device_number, .fast = options_.fast});
  if (options_.device == "auto") options_.device = backend_->chip();  // another one has other bits
  std::shared_ptr<Decoder> decoder = Decoder::load(*files_, *backend_, options_.decoder);
  decoder_ = decoder;
  std::vector<std::string> keys = load_adapters(options_.adapters, *decoder);
  decoder->agree(fmt::format("LoRA adapters [{}]", fmt::join(keys, ", ")));
  if (loaded_before && keys != adapter_keys_)
    throw_error(ErrorKind::kInvalidInput, "the files of an adapter have changed since the start");
  if (!loaded_before) adapter_keys_ = std::move(keys);
}

std::shared_ptr<LanguageModel> LanguageModel::wrap(const ModelFiles& files,
                                                   std::shared_ptr<const Decoder> decoder) {
  const std::shared_ptr<LanguageModel> model(new LanguageModel);
  model->read(files, "");
  model->decoder_ = std::move(decoder);
  model->fit_tokenizer();
  for (int32_t i = 0; i < model->decoder_->adapters(); ++i) {
    model->adapters_.push_back({fmt::to_string(i), {}});
    model->adapter_keys_.push_back(fmt::to_string(i));
  }
  return model;
}

void LanguageModel::read(const ModelFiles& files, const std::string& template_file) {
  path_ = files.path();
  name_ = model_name(path_);
  tokenizer_ = Tokenizer::from_model(files);
  const std::string source =
      template_file.empty() ? files.chat_template() : read_file(template_file, 1 << 20);
  if (!source.empty())
    chat_template_.emplace(source,
                           template_file.empty() ? path_.string() + ": chat template" : template_file);
  Json generation_config;
  if (files.kind() == ModelFiles::Kind::kHuggingFace) generation_config = files.generation_config();
  if (!generation_config.is_null()) sampling_ = qiao::recommended_sampling(generation_config);
  end_of_generation_ = find_end_tokens(*tokenizer_, generation_config);
}

void LanguageModel::fit_tokenizer() {
  config_ = decoder_->config();
  const int64_t vocabulary = config_.vocabulary_size;
  tokenizer_->require_fit(vocabulary, path_.string());
  std::erase_if(end_of_generation_, [&](TokenId id) { return id >= vocabulary; });  // never drawn
}

int32_t LanguageModel::adapter_number(std::string_view name) const {
  if (name.empty()) return -1;
  const auto found = std::ranges::find(adapters_, name, &AdapterSource::name);
  if (found != adapters_.end()) return static_cast<int32_t>(found - adapters_.begin());
  std::string known;
  for (const AdapterSource& adapter : adapters_) known += (known.empty() ? "" : ", ") + adapter.name;
  throw_error(ErrorKind::kNotFound, "adapter: {} is not loaded; {}", quote_text(name),
              known.empty() ? "no adapter is" : "loaded are: " + known);
}

bool LanguageModel::ends_generation(TokenId id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

std::shared_ptr<const constrain::TokenTable> LanguageModel::token_table() const {
  std::call_once(token_table_made_, [this] {
    token_table_ = std::make_shared<constrain::TokenTable>(*tokenizer_, end_of_generation_);
  });
  return token_table_;
}

std::string LanguageModel::render_chat(Json variables) const {
  if (!chat_template_) {
    throw_error(
        ErrorKind::kUnsupported,
        "{}: the model has no chat template; use plain completion, or give one with --chat-template-file",
        path_.string());
  }
  add_token_variables(*tokenizer_, variables);
  return chat_template_->render(complete_chat_variables(std::move(variables)));
}

std::vector<TokenId> LanguageModel::encode_chat(Json variables) const {
  return encode_rendered_chat(render_chat(std::move(variables)));
}

std::vector<TokenId> LanguageModel::encode_rendered_chat(std::string_view text) const {
  return qiao::encode_rendered_chat(*tokenizer_, text);
}

std::vector<TokenId> LanguageModel::encode_prompt(std::string_view text) const {
  return tokenizer_->encode(text, {.add_special = true, .parse_special = true});
}

}  // namespace qiao
