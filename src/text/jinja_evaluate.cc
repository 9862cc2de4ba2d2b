// The interpreter's expressions.
#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/jinja_operators.h"

namespace qiao::jinja {
namespace {

const Method* method_of(const Value& value, const AttributeNames& names) {
  switch (value.kind()) {
    case Kind::kString:
      return names.string;
    case Kind::kList:
      return names.list;
    case Kind::kTuple:
      return names.tuple;
    case Kind::kDict:
      return names.dict;
    default:
      return nullptr;
  }
}

}  // namespace

Value& Interpreter::slot(const Reference& reference, const Ref<Activation>& frame) const {
  Activation* holder = frame.get();
  for (int i = 0; i < reference.hops; ++i) holder = holder->outer.get();
  return holder->slots[static_cast<size_t>(reference.slot)];
}

Value Interpreter::evaluate_name(const Expr& expr, const Ref<Activation>& frame) {
  const Value& value = slot(expr.reference, frame);
  if (!value.is(Kind::kMissing)) return value;
  return Value::undefined(fmt::format("'{}' is undefined", expr.text));
}

Value Interpreter::evaluate(const Expr& expr, const Ref<Activation>& frame) {
  step();
  budget_.check_stack();
  switch (expr.kind) {
    case ExprKind::kConstant:
      return expr.constant;
    case ExprKind::kName:
      return evaluate_name(expr, frame);
    case ExprKind::kAttribute:
      line_ = expr.line;
      return get_attribute(*this, evaluate(*expr.children[0], frame), expr.text, expr.attributes);
    case ExprKind::kItem: {
      const Value object = evaluate(*expr.children[0], frame);
      const Value key = evaluate(*expr.children[1], frame);
      line_ = expr.line;
      return get_item(*this, object, key);
    }
    case ExprKind::kSlice: {
      Value parts[4];
      for (size_t i = 0; i < 4; ++i) {
        if (expr.children[i]) parts[i] = evaluate(*expr.children[i], frame);
      }
      return slice(parts[0], parts[1], parts[2], parts[3]);
    }
    case ExprKind::kCall:
      return evaluate_call(expr, frame, nullptr);
    case ExprKind::kFilter:
      return evaluate_filter(expr, frame, nullptr);
    case ExprKind::kTest: {
      const Value value = evaluate(*expr.children[0], frame);
      Arguments arguments;
      evaluate_arguments(*expr.arguments, frame, arguments);
      line_ = expr.line;
      if (!expr.test) fail("No test named '{}' found.", expr.text);
      return Value(expr.test->body(*this, value, arguments));
    }
    case ExprKind::kConditional:
      if (truth(evaluate(*expr.children[0], frame))) return evaluate(*expr.children[1], frame);
      if (expr.children[2]) return evaluate(*expr.children[2], frame);
      return Value::undefined(fmt::format(
          "the inline if-expression on line {} evaluated to false and no else section was defined.",
          expr.line));
    case ExprKind::kNot:
      return Value(!truth(evaluate(*expr.children[0], frame)));
    case ExprKind::kNegate:
      return negate(evaluate(*expr.children[0], frame));
    case ExprKind::kPositive:
      return positive(evaluate(*expr.children[0], frame));
    case ExprKind::kAnd: {
      Value left = evaluate(*expr.children[0], frame);
      return truth(left) ? evaluate(*expr.children[1], frame) : left;
    }
    case ExprKind::kOr: {
      Value left = evaluate(*expr.children[0], frame);
      return truth(left) ? left : evaluate(*expr.children[1], frame);
    }
    case ExprKind::kConcat: {
      std::string text;
      for (const ExprPtr& child : expr.children) write(evaluate(*child, frame), text);
      return Value(std::move(text));
    }
    case ExprKind::kCompare:
      return evaluate_compare(expr, frame);
    case ExprKind::kTuple:
    case ExprKind::kList:
    case ExprKind::kDict:
      return evaluate_display(expr, frame);
    case ExprKind::kNamespaceAttribute:
      break;
    default:
      return evaluate_binary(expr, frame);
  }
  QIAO_ASSERT(false);
  return Value();
}

Value Interpreter::evaluate_display(const Expr& expr, const Ref<Activation>& frame) {
  if (expr.kind == ExprKind::kDict) {
    const auto dict = make<Dict>();
    for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
      Value key = evaluate(*expr.children[i], frame);
      dict->set(std::move(key), evaluate(*expr.children[i + 1], frame));
    }
    return Value(dict);
  }
  std::vector<Value> items;
  items.reserve(expr.children.size());
  for (const ExprPtr& child : expr.children) items.push_back(evaluate(*child, frame));
  return expr.kind == ExprKind::kList ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

Value Interpreter::evaluate_binary(const Expr& expr, const Ref<Activation>& frame) {
  const Value left = evaluate(*expr.children[0], frame);
  const Value right = evaluate(*expr.children[1], frame);
  line_ = expr.line;
  switch (expr.kind) {
    case ExprKind::kAdd:
      return add(left, right);
    case ExprKind::kSubtract:
      return subtract(left, right);
    case ExprKind::kMultiply:
      return multiply(left, right);
    case ExprKind::kDivide:
      return divide(left, right);
    case ExprKind::kFloorDivide:
      return floor_divide(left, right);
    case ExprKind::kModulo:
      return modulo(left, right);
    default:
      return power(left, right);
  }
}

Value Interpreter::evaluate_compare(const Expr& expr, const Ref<Activation>& frame) {
  Value left = evaluate(*expr.children[0], frame);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = evaluate(*expr.children[i + 1], frame);
    line_ = expr.line;
    bool holds = false;
    switch (expr.operators[i]) {
      case Comparison::kEqual:
        holds = equals(left, right);
        break;
      case Comparison::kNotEqual:
        holds = !equals(left, right);
        break;
      case Comparison::kLess:
        holds = less(left, right);
        break;
      case Comparison::kLessOrEqual:
        holds = less_or_equal(left, right);
        break;
      case Comparison::kGreater:
        holds = less(right, left);
        break;
      case Comparison::kGreaterOrEqual:
        holds = less_or_equal(right, left);
        break;
      case Comparison::kIn:
        holds = contains(*this, right, left);
        break;
      case Comparison::kNotIn:
        holds = !contains(*this, right, left);
        break;
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

void Interpreter::evaluate_arguments(const CallArguments& arguments, const Ref<Activation>& frame,
                                     Arguments& result) {
  result.positional.reserve(arguments.positional.size());
  for (const ExprPtr& child : arguments.positional) result.positional.push_back(evaluate(*child, frame));
  for (const auto& [name, child] : arguments.named) result.named.emplace_back(name, evaluate(*child, frame));
  if (arguments.star) {
    for (Value& each : to_vector(*this, evaluate(*arguments.star, frame))) {
      result.positional.push_back(std::move(each));
    }
  }
  if (!arguments.double_star) return;
  const Value more = evaluate(*arguments.double_star, frame);
  if (!more.is(Kind::kDict)) fail("argument after ** must be a mapping, not {}", type_name(more));
  for (const Dict::Entry& entry : more.dict().entries()) {
    const Value& key = entry.first;
    if (!key.is_string()) fail("keywords must be strings");
    const bool doubled = std::any_of(result.named.begin(), result.named.end(),
                                     [&, name = key.text()](const auto& each) { return each.first == name; });
    if (doubled) fail("got multiple values for keyword argument '{}'", key.text());
    result.named.emplace_back(key.text(), entry.second);
  }
}

Value Interpreter::evaluate_call(const Expr& expr, const Ref<Activation>& frame, const Value* caller) {
  const Expr& callee = *expr.children[0];
  Value object;
  const Method* method = nullptr;
  if (callee.kind == ExprKind::kAttribute) {
    object = evaluate(*callee.children[0], frame);
    method = method_of(object, callee.attributes);
    if (!method) object = get_attribute(*this, object, callee.text, callee.attributes);
  } else {
    object = evaluate(callee, frame);
  }
  Arguments arguments;
  evaluate_arguments(*expr.arguments, frame, arguments);
  if (caller) arguments.named.emplace_back("caller", *caller);
  line_ = expr.line;
  if (!method) return call(object, arguments);
  if (method->changes) {
    fail("access to attribute '{}' of '{}' object is unsafe.", method->name, type_name(object));
  }
  if (!method->body)
    throw_error(ErrorKind::kUnsupported, "the method {}.{}", type_name(object), method->name);
  return method->body(*this, object, arguments);
}

Value Interpreter::evaluate_filter(const Expr& expr, const Ref<Activation>& frame, const Value* block_text) {
  Value value;
  if (expr.children[0]) {
    // The filters of a block are a chain, at whose start stands the block's text.
    value = block_text ? evaluate_filter(*expr.children[0], frame, block_text)
                       : evaluate(*expr.children[0], frame);
  } else {
    value = *block_text;
  }
  Arguments arguments;
  evaluate_arguments(*expr.arguments, frame, arguments);
  line_ = expr.line;
  if (!expr.filter) fail("No filter named '{}' found.", expr.text);
  return expr.filter->body(*this, value, arguments);
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  step();
  budget_.check_stack();
  switch (callee.kind()) {
    case Kind::kFunction: {
      const Value held = callee;  // the call may drop the last other reference
      return held.function().call(*this, arguments);
    }
    case Kind::kLoop: {
      const Value held = callee;
      return held.loop().call(*this, arguments);
    }
    default:
      require_defined(callee);
      fail("'{}' object is not callable", type_name(callee));
  }
}

}  // namespace qiao::jinja
