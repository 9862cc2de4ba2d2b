// The parser's statements.
#include "text/jinja_parser.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::jinja {

std::unique_ptr<Template> parse_template(std::string_view source, int max_depth) {
  auto result = std::make_unique<Template>();
  Parser(tokenize(source), max_depth, *result).parse();
  return result;
}

Parser::Level::Level(Parser& parser) : parser_(parser) {
  if (++parser_.depth_ > parser_.max_depth_) {
    throw_error(ErrorKind::kTooLarge, "line {}: nested deeper than {}", parser_.current().line,
                parser_.max_depth_);
  }
}

Parser::Parser(std::vector<Token> tokens, int max_depth, Template& result)
    : tokens_(std::move(tokens)), max_depth_(max_depth), result_(result) {}

void Parser::parse() { result_.body = parse_body({}); }

Token Parser::next() {
  Token token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool Parser::is_operator(std::string_view op) const {
  return current().kind == TokenKind::kOperator && current().text == op;
}
bool Parser::is_name(std::string_view name) const {
  return current().kind == TokenKind::kName && current().text == name;
}
bool Parser::skip_operator(std::string_view op) {
  if (!is_operator(op)) return false;
  next();
  return true;
}
bool Parser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  next();
  return true;
}

void Parser::expect_operator(std::string_view op) {
  if (!skip_operator(op))
    fail(current().line, fmt::format("expected token '{}', got '{}'", op, describe(current())));
}

Token Parser::expect(TokenKind kind, std::string_view what) {
  if (current().kind == kind) return next();
  if (current().kind == TokenKind::kEnd) {
    fail(current().line, fmt::format("unexpected end of template, expected '{}'.", what));
  }
  fail(current().line, fmt::format("expected token '{}', got '{}'", what, describe(current())));
}

void Parser::fail(int line, std::string_view message) const {
  throw_error(ErrorKind::kInvalidInput, "line {}: {}", line, message);
}

void Parser::unsupported(int line, std::string_view what) const {
  throw_error(ErrorKind::kUnsupported, "line {}: {} is not supported in chat templates", line, what);
}

StmtPtr Parser::statement(StmtKind kind, int line) const {
  auto result = std::make_unique<Stmt>();
  result->kind = kind;
  result->line = line;
  return result;
}

Body Parser::parse_body(const std::vector<std::string_view>& ends) {
  const Level level(*this);
  Body body;
  while (current().kind != TokenKind::kEnd) {
    const int line = current().line;
    switch (current().kind) {
      case TokenKind::kData:
        body.push_back(statement(StmtKind::kText, line));
        body.back()->text = next().text;
        break;
      case TokenKind::kVariableBegin:
        next();
        body.push_back(statement(StmtKind::kOutput, line));
        body.back()->exprs.push_back(parse_tuple({}));
        expect(TokenKind::kVariableEnd, "end of print statement");
        break;
      case TokenKind::kBlockBegin:
        next();
        for (const std::string_view end : ends) {
          if (is_name(end)) return body;
        }
        body.push_back(parse_statement());
        expect(TokenKind::kBlockEnd, "end of statement block");
        break;
      default:
        fail(line, fmt::format("unexpected '{}'", describe(current())));
    }
  }
  return body;
}

Body Parser::parse_statements(const std::vector<std::string_view>& ends, bool drop_end) {
  skip_operator(":");
  expect(TokenKind::kBlockEnd, "end of statement block");
  Body body = parse_body(ends);
  if (current().kind == TokenKind::kEnd) {
    fail(current().line,
         fmt::format("Unexpected end of template. Jinja was looking for '{}'.", ends.front()));
  }
  if (drop_end) next();
  return body;
}

StmtPtr Parser::parse_statement() {
  const Token& token = current();
  const int line = token.line;
  if (token.kind != TokenKind::kName) fail(line, "tag name expected");
  const std::string& name = token.text;
  if (name == "set") return parse_set();
  if (name == "for") return parse_for();
  if (name == "if") return parse_if();
  if (name == "with") return parse_with();
  if (name == "macro") return parse_macro();
  if (name == "call") return parse_call_block();
  if (name == "generation") return parse_generation();
  if (name == "filter") return parse_filter_block();
  if (name == "block") return parse_block();
  if (name == "print") return parse_print();
  if (name == "break" || name == "continue") {
    return statement(next().text == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
  }
  for (const std::string_view tag : {"extends", "include", "import", "from", "autoescape"}) {
    if (name == tag) unsupported(line, fmt::format("{{% {} %}}", tag));
  }
  fail(line, fmt::format("Encountered unknown tag '{}'.", name));
}

StmtPtr Parser::parse_set() {
  const int line = next().line;
  ExprPtr target = parse_target(true);
  if (skip_operator("=")) {
    StmtPtr result = statement(StmtKind::kSet, line);
    result->target = std::move(target);
    result->exprs.push_back(parse_tuple({}));
    return result;
  }
  StmtPtr result = statement(StmtKind::kSetBlock, line);
  result->target = std::move(target);
  ExprPtr filter;
  while (skip_operator("|")) filter = parse_filter(std::move(filter));
  result->filter = std::move(filter);
  result->body = parse_statements({"endset"}, true);
  return result;
}

StmtPtr Parser::parse_for() {
  StmtPtr result = statement(StmtKind::kFor, next().line);
  result->target = parse_target(false, "in");
  if (!skip_name("in"))
    fail(current().line, fmt::format("expected token 'in', got '{}'", describe(current())));
  result->exprs.push_back(parse_tuple({.with_conditional = false, .end_name = "recursive"}));
  if (skip_name("if")) result->test = parse_expression();
  result->recursive = skip_name("recursive");
  result->body = parse_statements({"endfor", "else"}, false);
  if (next().text == "else") result->otherwise = parse_statements({"endfor"}, true);
  return result;
}

StmtPtr Parser::parse_if() {
  StmtPtr result = statement(StmtKind::kIf, next().line);
  while (true) {
    Branch branch;
    branch.test = parse_tuple({.with_conditional = false});
    branch.body = parse_statements({"elif", "else", "endif"}, false);
    result->branches.push_back(std::move(branch));
    const Token end = next();
    if (end.text == "elif") continue;
    if (end.text == "else") result->otherwise = parse_statements({"endif"}, true);
    return result;
  }
}

StmtPtr Parser::parse_with() {
  StmtPtr result = statement(StmtKind::kWith, next().line);
  while (current().kind != TokenKind::kBlockEnd) {
    if (!result->targets.empty()) expect_operator(",");
    result->targets.push_back(parse_target(false));
    expect_operator("=");
    result->exprs.push_back(parse_expression());
  }
  result->body = parse_statements({"endwith"}, true);
  return result;
}

void Parser::parse_signature(MacroCode& macro) {
  expect_operator("(");
  while (!is_operator(")")) {
    if (!macro.parameters.empty()) expect_operator(",");
    const Token name = expect(TokenKind::kName, "name");
    if (std::find(macro.parameters.begin(), macro.parameters.end(), name.text) != macro.parameters.end()) {
      fail(name.line, fmt::format("duplicate argument '{}' in a macro", name.text));
    }
    if (skip_operator("=")) {
      macro.defaults.push_back(parse_expression());
    } else if (!macro.defaults.empty()) {
      fail(name.line, "non-default argument follows default argument");
    }
    macro.parameters.push_back(name.text);
  }
  expect_operator(")");
}

StmtPtr Parser::parse_macro() {
  StmtPtr result = statement(StmtKind::kMacro, next().line);
  result->macro = std::make_unique<MacroCode>();
  result->macro->name = expect(TokenKind::kName, "name").text;
  parse_signature(*result->macro);
  result->macro->body = parse_statements({"endmacro"}, true);
  return result;
}

StmtPtr Parser::parse_call_block() {
  StmtPtr result = statement(StmtKind::kCallBlock, next().line);
  result->macro = std::make_unique<MacroCode>();
  if (is_operator("(")) parse_signature(*result->macro);
  result->exprs.push_back(parse_expression());
  if (result->exprs[0]->kind != ExprKind::kCall) fail(result->line, "expected call");
  result->macro->body = parse_statements({"endcall"}, true);
  return result;
}

StmtPtr Parser::parse_generation() {
  StmtPtr result = statement(StmtKind::kGeneration, next().line);
  result->macro = std::make_unique<MacroCode>();
  result->macro->body = parse_statements({"endgeneration"}, true);
  return result;
}

StmtPtr Parser::parse_filter_block() {
  StmtPtr result = statement(StmtKind::kFilterBlock, next().line);
  result->filter = parse_filter(nullptr);
  while (skip_operator("|")) result->filter = parse_filter(std::move(result->filter));
  result->body = parse_statements({"endfilter"}, true);
  return result;
}

StmtPtr Parser::parse_block() {
  StmtPtr result = statement(StmtKind::kBlock, next().line);
  result->text = expect(TokenKind::kName, "name").text;
  if (is_name("scoped") || is_name("required")) unsupported(result->line, "a scoped or required block");
  result->body = parse_statements({"endblock"}, true);
  skip_name(result->text);
  result->code = std::make_unique<Code>();
  result_.has_blocks = true;
  return result;
}

StmtPtr Parser::parse_print() {
  StmtPtr result = statement(StmtKind::kOutput, next().line);
  while (current().kind != TokenKind::kBlockEnd) {
    if (!result->exprs.empty()) expect_operator(",");
    result->exprs.push_back(parse_expression());
  }
  return result;
}

ExprPtr Parser::parse_target(bool with_namespace, std::string_view end_name) {
  ExprPtr target = parse_tuple({.simplified = true, .with_namespace = with_namespace, .end_name = end_name});
  check_target(*target);
  return target;
}

void Parser::check_target(const Expr& target) const {
  switch (target.kind) {
    case ExprKind::kName:
    case ExprKind::kNamespaceAttribute:
      return;
    case ExprKind::kTuple:
      for (const ExprPtr& child : target.children) check_target(*child);
      return;
    case ExprKind::kList:
      unsupported(target.line, "an assignment to a list");
    default:
      fail(target.line, "can't assign to this expression");
  }
}

}  // namespace qiao::jinja
