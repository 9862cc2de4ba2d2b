// Source of a template to tokens, with jinja2's whitespace control (trim_blocks and lstrip_blocks on).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qiao::jinja {

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string
      text;  // of a string: unescaped; of a number: digits without underscores; of an operator: itself
};

// The last token is kEnd. Throws Error(kInvalidInput) "line N: …".
std::vector<Token> tokenize(std::string_view source);

// A token as error messages name it.
std::string describe(const Token& token);

}  // namespace qiao::jinja
