// Tokens to a tree. Depth of nesting is bounded, so that recursion over the tree is.
#pragma once

#include <string_view>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace qiao::jinja {

// Throws Error "line N: …": kInvalidInput for a syntax error, kUnsupported for inheritance and inclusion. The
// tree's variables have no slots yet: see resolve().
std::unique_ptr<Template> parse_template(std::string_view source, int max_depth);

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth, Template& result);
  void parse();

 private:
  struct TupleMode {
    bool simplified = false;
    bool with_conditional = true;
    bool parenthesized = false;
    bool with_namespace = false;
    std::string_view end_name = {};
  };
  // Counts one level of nesting while it lives.
  class Level {
   public:
    explicit Level(Parser& parser);
    ~Level() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token next();
  bool is_operator(std::string_view op) const;
  bool is_name(std::string_view name) const;
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_operator(std::string_view op);
  Token expect(TokenKind kind, std::string_view what);
  [[noreturn]] void fail(int line, std::string_view message) const;
  [[noreturn]] void unsupported(int line, std::string_view what) const;

  // Statements: jinja_parser.cc.
  Body parse_body(const std::vector<std::string_view>& ends);
  Body parse_statements(const std::vector<std::string_view>& ends, bool drop_end);
  StmtPtr parse_statement();
  StmtPtr parse_set();
  StmtPtr parse_for();
  StmtPtr parse_if();
  StmtPtr parse_with();
  StmtPtr parse_macro();
  StmtPtr parse_call_block();
  StmtPtr parse_generation();
  StmtPtr parse_filter_block();
  StmtPtr parse_block();
  StmtPtr parse_print();
  void parse_signature(MacroCode& macro);
  ExprPtr parse_target(bool with_namespace, std::string_view end_name = {});
  void check_target(const Expr& target) const;
  StmtPtr statement(StmtKind kind, int line) const;

  // Expressions: jinja_parse_expression.cc.
  ExprPtr parse_expression(bool with_conditional = true);
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filter = true);
  ExprPtr parse_primary(bool with_namespace = false);
  ExprPtr parse_tuple(const TupleMode& mode);
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr node);
  ExprPtr parse_filters_and_tests(ExprPtr node);
  ExprPtr parse_subscript(ExprPtr node);
  ExprPtr parse_subscribed(bool& is_slice, ExprPtr& start, ExprPtr& stop, ExprPtr& step);
  ExprPtr parse_filter(ExprPtr node);
  ExprPtr parse_test(ExprPtr node);
  ExprPtr parse_call(ExprPtr node);
  std::unique_ptr<CallArguments> parse_arguments();
  std::string parse_dotted_name();
  ExprPtr string_constant(std::string text, int line);
  ExprPtr make_node(ExprKind kind, int line) const;
  void adopt(Expr& parent, ExprPtr child) const;
  void measure(Expr& node) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  const int max_depth_;
  Template& result_;
};

}  // namespace qiao::jinja
