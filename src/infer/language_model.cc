#include "infer/language_model.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "text/chat_variables.h"

namespace qiao {
namespace {

// generation_config.json's eos_token_id: a number or a list of numbers.
void add_end_tokens(const Json& generation_config, std::vector<TokenId>& ids) {
  if (!generation_config.is_object() || !generation_config.contains("eos_token_id")) return;
  const Json& eos = generation_config["eos_token_id"];
  const auto add = [&](const Json& id) {
    if (id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX) {
      ids.push_back(id.get<TokenId>());
    }
  };
  if (eos.is_array()) {
    for (const Json& id : eos) add(id);
  } else {
    add(eos);
  }
}

std::string model_name(const std::filesystem::path& path) {
  const std::filesystem::path clean = std::filesystem::absolute(path).lexically_normal();
  if (clean.extension() == ".gguf") return clean.stem().string();
  return clean.has_filename() ? clean.filename().string() : clean.parent_path().filename().string();
}

}  // namespace

std::shared_ptr<LanguageModel> LanguageModel::load(const std::filesystem::path& path,
                                                   const LanguageModelOptions& options) {
  const std::shared_ptr<ModelFiles> files = ModelFiles::open(path);
  const std::shared_ptr<LanguageModel> model(new LanguageModel);
  model->path_ = path;
  model->name_ = model_name(path);
  model->tokenizer_ = Tokenizer::from_model(*files);
  const std::string source = options.chat_template_file.empty()
                                 ? files->chat_template()
                                 : read_file(options.chat_template_file, 1 << 20);
  if (!source.empty()) {
    model->chat_template_.emplace(source, options.chat_template_file.empty()
                                              ? path.string() + ": chat template"
                                              : options.chat_template_file);
  }
  model->end_of_generation_ = model->tokenizer_->end_of_generation();
  if (files->kind() == ModelFiles::Kind::kHuggingFace) {
    model->sampling_ = qiao::recommended_sampling(files->generation_config());
    add_end_tokens(files->generation_config(), model->end_of_generation_);
  }
  std::sort(model->end_of_generation_.begin(), model->end_of_generation_.end());
  model->backend_ = make_backend(options.device, {.threads = options.threads});
  model->decoder_ = Decoder::load(*files, *model->backend_, options.decoder);
  if (model->tokenizer_->vocabulary_size() > model->decoder_->config().vocabulary_size) {
    throw_error(ErrorKind::kInvalidInput, "{}: the tokenizer has {} tokens, the model only {}", path.string(),
                model->tokenizer_->vocabulary_size(), model->decoder_->config().vocabulary_size);
  }
  return model;
}

bool LanguageModel::ends_generation(TokenId id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

std::string LanguageModel::render_chat(Json variables) const {
  if (!chat_template_) {
    throw_error(
        ErrorKind::kUnsupported,
        "{}: the model has no chat template; use plain completion, or give one with --chat-template-file",
        path_.string());
  }
  const auto add_token = [&](const char* name, std::optional<TokenId> id) {
    if (id && !variables.contains(name)) variables[name] = tokenizer_->token_bytes(*id);
  };
  add_token("bos_token", tokenizer_->bos());
  add_token("eos_token", tokenizer_->eos());
  return chat_template_->render(complete_chat_variables(std::move(variables)));
}

std::vector<TokenId> LanguageModel::encode_chat(Json variables) const {
  return encode_rendered_chat(render_chat(std::move(variables)));
}

std::vector<TokenId> LanguageModel::encode_rendered_chat(std::string_view text) const {
  std::vector<TokenId> ids = tokenizer_->encode(text, {.parse_special = true});
  const std::optional<TokenId> bos = tokenizer_->bos();
  if (bos && tokenizer_->adds_bos() && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
  return ids;
}

std::vector<TokenId> LanguageModel::encode_prompt(std::string_view text) const {
  return tokenizer_->encode(text, {.add_special = true, .parse_special = true});
}

}  // namespace qiao
