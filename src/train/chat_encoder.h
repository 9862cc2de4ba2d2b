// Conversations as tokens, with loss on what the assistant writes: the tokens are those of the whole
// conversation as the model's own chat template renders it, which is what a server would compute with.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "chat/chat_format.h"
#include "formats/model_files.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/chat_rows.h"
#include "train/documents.h"

namespace qiao::train {

struct ChatEncoderOptions {
  std::filesystem::path template_file;  // in place of the model's own template
  int64_t now = -1;                     // seconds since 1970 that templates take for now; negative: the clock
};

// Safe from any thread after construction.
class ChatEncoder {
 public:
  // `tokenizer` (null: the model has none) outlives this. Throws Error(kUnsupported) where the model lacks a
  // tokenizer or a template, saying what to do.
  ChatEncoder(const ModelFiles& files, const Tokenizer* tokenizer, const ChatEncoderOptions& options);

  // Each answer behind the conversation's prompt carries loss from the first token that the model itself has
  // to write to the one that ends its turn, both included; what opens the turn and what follows its end does
  // not. Where the template marks what is generated ({% generation %}), its marks are taken. Throws Error:
  // the template's own, or kInvalidInput where there is no answer.
  Document encode(const Conversation& conversation) const;

  // What a server would begin to answer from: the messages, and what opens the answer.
  std::vector<int32_t> encode_prompt(const Conversation& conversation) const;

 private:
  // Where an answer stands in the text, in bytes: it ends with the first token at or behind `content_end`
  // that ends a turn, and before `bound`.
  struct Turn {
    size_t begin, content_end, bound;
    bool is_bounded;  // what follows the answer begins at `bound` or behind it; false: not known
  };
  std::string render(const Conversation& conversation, Json messages, bool opens_answer,
                     std::vector<TextSpan>* generated = nullptr) const;
  // The same; nothing where the template refuses.
  std::optional<std::string> try_render(const Conversation& conversation, Json messages,
                                        bool opens_answer) const;
  Turn find_turn(const Conversation& conversation, const std::string& text, size_t message,
                 size_t after) const;
  size_t find_begin(const Conversation& conversation, const std::string& text, size_t message,
                    size_t after) const;
  void find_openings();

  const Tokenizer* tokenizer_;
  std::optional<ChatTemplate> template_;
  chat::ChatFormat format_;
  bool knows_developer_ = false;
  int64_t now_;
  std::vector<TokenId> end_tokens_;    // ascending
  std::vector<std::string> openings_;  // what may open an answer, the longest first
};

// Rows of conversations in every shape, and those of PlainDocuments.
class ChatDocuments final : public DocumentMaker {
 public:
  ChatDocuments(ChatEncoder encoder, PlainDocuments plain)
      : encoder_(std::move(encoder)), plain_(std::move(plain)) {}
  std::vector<Document> make(const Row& row) override;

 private:
  ChatEncoder encoder_;
  PlainDocuments plain_;
};

}  // namespace qiao::train
