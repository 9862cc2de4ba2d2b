// A model ready to talk: files, tokenizer, chat template, decoder and the chip it runs on.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "constrain/token_table.h"
#include "infer/sampling.h"
#include "models/decoder.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace qiao {

// A LoRA adapter to be loaded beside a model, by the name that requests give.
struct AdapterSource {
  std::string name;
  std::filesystem::path path;  // a directory of PEFT or a GGUF file
};

struct LanguageModelOptions {
  std::string device = "auto";
  int threads = 0;        // 0: as many as this process may use
  int device_number = 0;  // of several alike, where `device` does not say
  bool fast = false;      // BackendOptions::fast
  DecoderOptions decoder;
  std::string chat_template_file;  // in place of the model's own
  std::vector<AdapterSource> adapters;
};

// Immutable after loading, but for the backend, which one engine at a time uses, and for drop_chip and
// load_chip.
class LanguageModel {
 public:
  // Throws Error naming file, key or tensor for what does not load; of adapters also for names that are
  // empty, over 200 bytes or given twice.
  static std::shared_ptr<LanguageModel> load(const std::filesystem::path& path,
                                             const LanguageModelOptions& options);

  // Around a decoder that somebody else has loaded from `files` and goes on to use, training: who asks for
  // tokens does not use it meanwhile. Its adapters are named "0", "1"…. Throws as load does.
  static std::shared_ptr<LanguageModel> wrap(const ModelFiles& files, std::shared_ptr<const Decoder> decoder);

  const std::filesystem::path& path() const { return path_; }
  const std::string& name() const {
    return name_;
  }  // what /v1/models shows by default: the file's or folder's stem
  const ModelFiles* files() const { return files_.get(); }  // nullptr: wrapped
  Backend& backend() const { return decoder_->backend(); }
  const Decoder& decoder() const { return *decoder_; }
  const DecoderConfig& config() const { return config_; }  // the decoder's; stays where the chip is dropped
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate* chat_template() const { return chat_template_ ? &*chat_template_ : nullptr; }
  const SamplingOptions& recommended_sampling() const { return sampling_; }
  bool ends_generation(TokenId id) const;
  const std::vector<AdapterSource>& adapters() const { return adapters_; }
  // The number by which steps of the decoder know an adapter; -1 for the empty name. Throws
  // Error(kNotFound), listing those there are.
  int32_t adapter_number(std::string_view name) const;
  // What tells an adapter's cached keys and values from all others', also after a restart with other files.
  const std::string& adapter_key(int32_t number) const { return adapter_keys_[static_cast<size_t>(number)]; }
  // The vocabulary as constraints on answers need it, with all tokens that end generation. Made at the first
  // call, which takes a moment; safe from any thread.
  std::shared_ptr<const constrain::TokenTable> token_table() const;

  // Where the device was lost: drop_chip ends the chip and all that lies on it, load_chip has both again, the
  // same chip, from the files that were opened at the start. Nobody uses backend() or decoder() meanwhile;
  // all else goes on. Throws as load does, and Error(kUnsupported) for a model that was wrapped.
  void drop_chip();
  void load_chip();

  // `variables` as ChatTemplate::render takes them (messages, tools, add_generation_prompt…); bos_token and
  // eos_token are added. Throws Error(kUnsupported) where the model has no chat template.
  std::string render_chat(Json variables) const;
  // Token ids of a rendered chat (special tokens parsed; BOS added only where the template did not write it).
  std::vector<TokenId> encode_chat(Json variables) const;
  // The same of a text that render_chat gave.
  std::vector<TokenId> encode_rendered_chat(std::string_view text) const;
  // Token ids of a plain prompt, with BOS where the model wants it.
  std::vector<TokenId> encode_prompt(std::string_view text) const;

 private:
  LanguageModel() = default;
  // Tokenizer, chat template (of `template_file`, or the model's own) and recommended sampling.
  void read(const ModelFiles& files, const std::string& template_file);
  void fit_tokenizer();                // to the decoder
  std::shared_ptr<ModelFiles> files_;  // null: the decoder is somebody else's
  LanguageModelOptions options_;
  std::filesystem::path path_;
  std::string name_;
  std::unique_ptr<Backend> backend_;  // null: the decoder is somebody else's
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  std::shared_ptr<const Decoder> decoder_;  // before backend_ is destroyed: declared after it
  DecoderConfig config_;
  SamplingOptions sampling_;
  std::vector<TokenId> end_of_generation_;
  std::vector<AdapterSource> adapters_;  // by number
  std::vector<std::string> adapter_keys_;
  mutable std::once_flag token_table_made_;
  mutable std::shared_ptr<const constrain::TokenTable> token_table_;
};

}  // namespace qiao
