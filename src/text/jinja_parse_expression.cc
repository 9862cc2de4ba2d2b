// The parser's expressions, loosest binding first.
#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "text/jinja_parser.h"

namespace qiao::jinja {
namespace {

// A chain such as a + b + c… grows the tree without nesting the source: allowed this much higher than
// max_depth.
constexpr int kHeightPerDepth = 4;

struct BinaryOperator {
  std::string_view text;
  ExprKind kind;
};

constexpr BinaryOperator kSums[] = {{"+", ExprKind::kAdd}, {"-", ExprKind::kSubtract}};
constexpr BinaryOperator kProducts[] = {{"*", ExprKind::kMultiply},
                                        {"/", ExprKind::kDivide},
                                        {"//", ExprKind::kFloorDivide},
                                        {"%", ExprKind::kModulo}};

struct ComparisonOperator {
  std::string_view text;
  Comparison comparison;
};

constexpr ComparisonOperator kComparisons[] = {
    {"==", Comparison::kEqual},       {"!=", Comparison::kNotEqual}, {"<", Comparison::kLess},
    {"<=", Comparison::kLessOrEqual}, {">", Comparison::kGreater},   {">=", Comparison::kGreaterOrEqual}};

}  // namespace

ExprPtr Parser::make_node(ExprKind kind, int line) const {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = line;
  return node;
}

void Parser::adopt(Expr& parent, ExprPtr child) const {
  parent.children.push_back(std::move(child));
  measure(parent);
}

void Parser::measure(Expr& node) const {
  int height = 0;
  const auto see = [&](const ExprPtr& child) {
    if (child) height = std::max(height, child->height);
  };
  // Lists and calls are measured once, by their maker; chains here, one child at a time.
  if (!node.children.empty()) {
    see(node.children.front());
    see(node.children.back());
  }
  node.height = std::max(node.height, height + 1);
  if (node.arguments) {
    for (const ExprPtr& child : node.arguments->positional) see(child);
    for (const auto& [name, child] : node.arguments->named) see(child);
    see(node.arguments->star);
    see(node.arguments->double_star);
    node.height = std::max(node.height, height + 1);
  }
  if (node.height > kHeightPerDepth * max_depth_) {
    throw_error(ErrorKind::kTooLarge, "line {}: an expression of more than {} steps in a row", node.line,
                kHeightPerDepth * max_depth_);
  }
}

ExprPtr Parser::parse_expression(bool with_conditional) {
  const Level level(*this);
  int line = current().line;
  ExprPtr left = parse_or();
  while (with_conditional && skip_name("if")) {
    ExprPtr node = make_node(ExprKind::kConditional, line);
    adopt(*node, parse_or());
    adopt(*node, std::move(left));
    adopt(*node, skip_name("else") ? parse_expression() : nullptr);
    left = std::move(node);
    line = current().line;
  }
  return left;
}

ExprPtr Parser::parse_or() {
  ExprPtr left = parse_and();
  while (is_name("or")) {
    ExprPtr node = make_node(ExprKind::kOr, next().line);
    adopt(*node, std::move(left));
    adopt(*node, parse_and());
    left = std::move(node);
  }
  return left;
}

ExprPtr Parser::parse_and() {
  ExprPtr left = parse_not();
  while (is_name("and")) {
    ExprPtr node = make_node(ExprKind::kAnd, next().line);
    adopt(*node, std::move(left));
    adopt(*node, parse_not());
    left = std::move(node);
  }
  return left;
}

ExprPtr Parser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const Level level(*this);
  ExprPtr node = make_node(ExprKind::kNot, next().line);
  adopt(*node, parse_not());
  return node;
}

ExprPtr Parser::parse_compare() {
  ExprPtr left = parse_sum();
  ExprPtr node;
  const auto operand = [&](Comparison comparison, int skipped) {
    if (!node) {
      node = make_node(ExprKind::kCompare, current().line);
      adopt(*node, std::move(left));
    }
    for (int i = 0; i < skipped; ++i) next();
    node->operators.push_back(comparison);
    adopt(*node, parse_sum());
  };
  while (true) {
    const auto* found = std::find_if(std::begin(kComparisons), std::end(kComparisons),
                                     [&](const ComparisonOperator& op) { return is_operator(op.text); });
    if (found != std::end(kComparisons)) {
      operand(found->comparison, 1);
    } else if (is_name("in")) {
      operand(Comparison::kIn, 1);
    } else if (is_name("not") && look().kind == TokenKind::kName && look().text == "in") {
      operand(Comparison::kNotIn, 2);
    } else {
      return node ? std::move(node) : std::move(left);
    }
  }
}

ExprPtr Parser::parse_sum() {
  ExprPtr left = parse_concat();
  while (true) {
    const auto* found = std::find_if(std::begin(kSums), std::end(kSums),
                                     [&](const BinaryOperator& op) { return is_operator(op.text); });
    if (found == std::end(kSums)) return left;
    ExprPtr node = make_node(found->kind, next().line);
    adopt(*node, std::move(left));
    adopt(*node, parse_concat());
    left = std::move(node);
  }
}

ExprPtr Parser::parse_concat() {
  ExprPtr first = parse_product();
  if (!is_operator("~")) return first;
  ExprPtr node = make_node(ExprKind::kConcat, current().line);
  adopt(*node, std::move(first));
  while (skip_operator("~")) adopt(*node, parse_product());
  return node;
}

ExprPtr Parser::parse_product() {
  ExprPtr left = parse_power();
  while (true) {
    const auto* found = std::find_if(std::begin(kProducts), std::end(kProducts),
                                     [&](const BinaryOperator& op) { return is_operator(op.text); });
    if (found == std::end(kProducts)) return left;
    ExprPtr node = make_node(found->kind, next().line);
    adopt(*node, std::move(left));
    adopt(*node, parse_power());
    left = std::move(node);
  }
}

ExprPtr Parser::parse_power() {
  ExprPtr left = parse_unary();
  while (is_operator("**")) {
    ExprPtr node = make_node(ExprKind::kPower, next().line);
    adopt(*node, std::move(left));
    adopt(*node, parse_unary());
    left = std::move(node);
  }
  return left;
}

ExprPtr Parser::parse_unary(bool with_filter) {
  ExprPtr node;
  if (is_operator("-") || is_operator("+")) {
    const Level level(*this);
    const Token op = next();
    node = make_node(op.text == "-" ? ExprKind::kNegate : ExprKind::kPositive, op.line);
    adopt(*node, parse_unary(false));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filter ? parse_filters_and_tests(std::move(node)) : std::move(node);
}

ExprPtr Parser::string_constant(std::string text, int line) {
  ExprPtr node = make_node(ExprKind::kConstant, line);
  node->constant = Value(std::move(text));
  node->constant.object()->make_immortal();
  result_.constants.emplace_back(node->constant.object());
  return node;
}

ExprPtr Parser::parse_primary(bool with_namespace) {
  const Token token = current();
  const int line = token.line;
  switch (token.kind) {
    case TokenKind::kName: {
      next();
      ExprPtr node = make_node(ExprKind::kConstant, line);
      if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
        node->constant = Value(token.text[0] == 't' || token.text[0] == 'T');
        return node;
      }
      if (token.text == "none" || token.text == "None") return node;
      node->text = token.text;
      node->kind = ExprKind::kName;
      if (with_namespace && skip_operator(".")) {
        node->kind = ExprKind::kNamespaceAttribute;
        node->attribute = expect(TokenKind::kName, "name").text;
      }
      return node;
    }
    case TokenKind::kString: {
      std::string text;
      while (current().kind == TokenKind::kString) text += next().text;
      return string_constant(std::move(text), line);
    }
    case TokenKind::kInteger: {
      next();
      ExprPtr node = make_node(ExprKind::kConstant, line);
      int base = 10;
      std::string_view digits = token.text;
      if (digits.size() > 2 && digits[0] == '0' && digits[1] > '9') {
        const char kind = static_cast<char>(digits[1] | 0x20);
        base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
        digits.remove_prefix(2);
      }
      int64_t value = 0;
      const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
      if (result.ec != std::errc()) fail(line, "an integer does not fit in 64 bits");
      node->constant = Value(value);
      return node;
    }
    case TokenKind::kFloat: {
      next();
      ExprPtr node = make_node(ExprKind::kConstant, line);
      double value = 0;
      const auto result = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      if (result.ec != std::errc()) fail(line, fmt::format("the number {} is out of range", token.text));
      node->constant = Value(value);
      return node;
    }
    default:
      break;
  }
  if (is_operator("(")) {
    next();
    ExprPtr node = parse_tuple({.parenthesized = true});
    expect_operator(")");
    return node;
  }
  if (is_operator("[")) return parse_list();
  if (is_operator("{")) return parse_dict();
  fail(line, fmt::format("unexpected '{}'", describe(token)));
}

ExprPtr Parser::parse_tuple(const TupleMode& mode) {
  const int line = current().line;
  ExprPtr tuple = make_node(ExprKind::kTuple, line);
  bool is_tuple = false;
  while (true) {
    if (!tuple->children.empty()) expect_operator(",");
    if (current().kind == TokenKind::kVariableEnd || current().kind == TokenKind::kBlockEnd ||
        is_operator(")") || (!mode.end_name.empty() && is_name(mode.end_name))) {
      break;
    }
    adopt(*tuple,
          mode.simplified ? parse_primary(mode.with_namespace) : parse_expression(mode.with_conditional));
    if (!is_operator(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return tuple;
  if (!tuple->children.empty()) return std::move(tuple->children[0]);
  if (!mode.parenthesized) {
    fail(line, fmt::format("Expected an expression, got '{}'", describe(current())));
  }
  return tuple;
}

ExprPtr Parser::parse_list() {
  ExprPtr list = make_node(ExprKind::kList, next().line);
  while (!is_operator("]")) {
    if (!list->children.empty()) expect_operator(",");
    if (is_operator("]")) break;
    adopt(*list, parse_expression());
  }
  expect_operator("]");
  return list;
}

ExprPtr Parser::parse_dict() {
  ExprPtr dict = make_node(ExprKind::kDict, next().line);
  while (!is_operator("}")) {
    if (!dict->children.empty()) expect_operator(",");
    if (is_operator("}")) break;
    adopt(*dict, parse_expression());
    expect_operator(":");
    adopt(*dict, parse_expression());
  }
  expect_operator("}");
  return dict;
}

ExprPtr Parser::parse_postfix(ExprPtr node) {
  while (true) {
    if (is_operator(".") || is_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (is_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr Parser::parse_filters_and_tests(ExprPtr node) {
  while (true) {
    if (skip_operator("|")) {
      node = parse_filter(std::move(node));
    } else if (is_name("is")) {
      node = parse_test(std::move(node));
    } else if (is_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr Parser::parse_subscript(ExprPtr object) {
  const Token open = next();
  if (open.text == ".") {
    const Token name = next();
    if (name.kind == TokenKind::kName) {
      ExprPtr node = make_node(ExprKind::kAttribute, open.line);
      node->text = name.text;
      node->attributes = find_attribute_names(name.text);
      adopt(*node, std::move(object));
      return node;
    }
    if (name.kind != TokenKind::kInteger) fail(name.line, "expected name or number");
    ExprPtr index = make_node(ExprKind::kConstant, name.line);
    int64_t value = 0;
    const auto result = std::from_chars(name.text.data(), name.text.data() + name.text.size(), value);
    if (result.ec != std::errc()) fail(name.line, "an integer does not fit in 64 bits");
    index->constant = Value(value);
    ExprPtr node = make_node(ExprKind::kItem, open.line);
    adopt(*node, std::move(object));
    adopt(*node, std::move(index));
    return node;
  }
  ExprPtr tuple = make_node(ExprKind::kTuple, open.line);
  bool is_slice = false;
  ExprPtr bounds[3];
  while (!is_operator("]")) {
    if (!tuple->children.empty()) expect_operator(",");
    adopt(*tuple, parse_subscribed(is_slice, bounds[0], bounds[1], bounds[2]));
    if (is_slice && !is_operator("]")) fail(open.line, "a slice beside other subscripts");
  }
  expect_operator("]");
  if (is_slice && tuple->children.size() != 1) fail(open.line, "a slice beside other subscripts");
  ExprPtr node = make_node(is_slice ? ExprKind::kSlice : ExprKind::kItem, open.line);
  adopt(*node, std::move(object));
  if (is_slice) {
    for (ExprPtr& bound : bounds) adopt(*node, std::move(bound));
  } else {
    adopt(*node, tuple->children.size() == 1 ? std::move(tuple->children[0]) : std::move(tuple));
  }
  return node;
}

// The expression between brackets; for a slice, nullptr and its bounds.
ExprPtr Parser::parse_subscribed(bool& is_slice, ExprPtr& start, ExprPtr& stop, ExprPtr& step) {
  if (!is_operator(":")) {
    start = parse_expression();
    if (!is_operator(":")) return std::move(start);
  }
  is_slice = true;
  next();
  const auto ends = [&] { return is_operator("]") || is_operator(",") || is_operator(":"); };
  if (!ends()) stop = parse_expression();
  if (skip_operator(":") && !ends()) step = parse_expression();
  return nullptr;
}

std::string Parser::parse_dotted_name() {
  std::string name = expect(TokenKind::kName, "name").text;
  while (skip_operator(".")) name += '.' + expect(TokenKind::kName, "name").text;
  return name;
}

// After the "|". A nullptr `node` stands for the text of a block.
ExprPtr Parser::parse_filter(ExprPtr value) {
  ExprPtr node = make_node(ExprKind::kFilter, current().line);
  node->text = parse_dotted_name();
  node->filter = find_filter(node->text);
  node->arguments = is_operator("(") ? parse_arguments() : std::make_unique<CallArguments>();
  adopt(*node, std::move(value));
  return node;
}

ExprPtr Parser::parse_test(ExprPtr value) {
  const int line = next().line;
  const bool negated = skip_name("not");
  ExprPtr node = make_node(ExprKind::kTest, line);
  node->text = parse_dotted_name();
  node->test = find_test(node->text);
  const TokenKind kind = current().kind;
  if (is_operator("(")) {
    node->arguments = parse_arguments();
  } else {
    node->arguments = std::make_unique<CallArguments>();
    const bool starts_value = kind == TokenKind::kName || kind == TokenKind::kString ||
                              kind == TokenKind::kInteger || kind == TokenKind::kFloat || is_operator("[") ||
                              is_operator("{");
    if (starts_value && !is_name("else") && !is_name("or") && !is_name("and")) {
      if (is_name("is")) fail(line, "You cannot chain multiple tests with is");
      node->arguments->positional.push_back(parse_postfix(parse_primary()));
    }
  }
  adopt(*node, std::move(value));
  if (!negated) return node;
  ExprPtr inverse = make_node(ExprKind::kNot, line);
  adopt(*inverse, std::move(node));
  return inverse;
}

ExprPtr Parser::parse_call(ExprPtr callee) {
  ExprPtr node = make_node(ExprKind::kCall, current().line);
  node->arguments = parse_arguments();
  adopt(*node, std::move(callee));
  return node;
}

std::unique_ptr<CallArguments> Parser::parse_arguments() {
  const int line = next().line;
  auto result = std::make_unique<CallArguments>();
  const auto ensure = [&](bool ok) {
    if (!ok) fail(line, "invalid syntax for function call expression");
  };
  bool first = true;
  while (!is_operator(")")) {
    if (!first) {
      expect_operator(",");
      if (is_operator(")")) break;
    }
    first = false;
    if (skip_operator("*")) {
      ensure(!result->star && !result->double_star);
      result->star = parse_expression();
    } else if (skip_operator("**")) {
      ensure(!result->double_star);
      result->double_star = parse_expression();
    } else if (current().kind == TokenKind::kName && look().kind == TokenKind::kOperator &&
               look().text == "=") {
      ensure(!result->double_star);
      const std::string name = next().text;
      next();
      for (const auto& [other, value] : result->named) {
        if (other == name) fail(line, fmt::format("keyword argument repeated: {}", name));
      }
      result->named.emplace_back(name, parse_expression());
    } else {
      ensure(!result->star && !result->double_star && result->named.empty());
      result->positional.push_back(parse_expression());
    }
  }
  expect_operator(")");
  return result;
}

}  // namespace qiao::jinja
