#include "text/jinja_interpreter.h"

#include "base/error.h"
#include "text/jinja_json.h"
#include "text/jinja_operators.h"

namespace qiao::jinja {
namespace {

// Namespaces and captured scopes are freed only when the render ends.
constexpr size_t kMaxKept = 1'000'000;

class Macro : public Function {
 public:
  Macro(const MacroCode& code, Ref<Activation> outer) : code_(code), outer_(std::move(outer)) {
    charge(sizeof(Macro));
  }
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return interpreter.call_macro(code_, outer_, arguments);
  }
  const char* type_name() const override { return "Macro"; }
  std::string repr() const override {
    return code_.name.empty() ? "<Macro anonymous>" : fmt::format("<Macro {}>", jinja::quoted(code_.name));
  }
  Value attribute(std::string_view name) const override {
    if (name == "name") return code_.name.empty() ? Value() : Value(std::string_view(code_.name));
    if (name == "caller") return Value(code_.takes_caller);
    if (name == "catch_kwargs") return Value(code_.takes_kwargs);
    if (name == "catch_varargs") return Value(code_.takes_varargs);
    if (name != "arguments") return Value::missing();
    std::vector<Value> names;
    for (const std::string& each : code_.parameters) names.emplace_back(std::string_view(each));
    return Value::tuple(std::move(names));
  }

 private:
  const MacroCode& code_;
  Ref<Activation> outer_;
};

bool take(Arguments& arguments, std::string_view name, Value& value) {
  for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
    if (it->first != name) continue;
    value = std::move(it->second);
    arguments.named.erase(it);
    return true;
  }
  return false;
}

}  // namespace

// One macro call or level of a recursive loop, while it runs.
class Interpreter::Deeper {
 public:
  explicit Deeper(Interpreter& interpreter) : interpreter_(interpreter) {
    const int limit = interpreter.budget_.limits().max_depth;
    if (++interpreter_.calls_ > limit) {
      --interpreter_.calls_;
      throw_error(ErrorKind::kTooLarge, "calls nested deeper than {}", limit);
    }
  }
  ~Deeper() { --interpreter_.calls_; }

 private:
  Interpreter& interpreter_;
};

// The variables of a run, while it runs. Macros made in it may hold it in a ring: it is cleared when the
// render ends, or at once where the run fails.
class Interpreter::Running {
 public:
  Running(Interpreter& interpreter, Ref<Activation> outer, int slots)
      : frame(make<Activation>(std::move(outer), slots)), interpreter_(interpreter) {}
  ~Running() {
    if (frame) frame->clear();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  void finish() {
    if (frame->references() > 1) interpreter_.keep(frame.get());
    frame = Ref<Activation>();
  }

  Ref<Activation> frame;

 private:
  Interpreter& interpreter_;
};

Activation::Activation(Ref<Activation> outside, int count)
    : outer(std::move(outside)), slots(static_cast<size_t>(count), Value::missing()) {
  charge(sizeof(Activation) + slots.capacity() * sizeof(Value));
}

Interpreter::Interpreter(const Template& source, const Json& variables, int64_t now, const Budget& budget)
    : template_(source), now_(now), budget_(budget) {
  if (!variables.is_object()) fail("the variables of a template must be an object");
  for (const auto& [name, value] : variables.items()) variables_.emplace(name, from_json(value));
}

Interpreter::~Interpreter() {
  for (const Ref<Collectable>& each : kept_) each->clear();
}

void Interpreter::keep(Collectable* object) {
  if (kept_.size() >= kMaxKept) {
    throw_error(ErrorKind::kTooLarge, "the template makes more than {} namespaces and macros", kMaxKept);
  }
  kept_.emplace_back(object);
}

std::string Interpreter::run(std::vector<TextSpan>* generated) {
  std::string out;
  output_ = &out;
  generated_ = generated;
  const auto frame = make<Activation>(Ref<Activation>(), template_.code.slots);
  keep(frame.get());
  enter(template_.scope, frame);
  execute(template_.body, frame, out);
  return out;
}

Value Interpreter::find_variable(const std::string& name) {
  if (const auto found = exported_.find(name); found != exported_.end()) return found->second;
  if (const auto found = variables_.find(name); found != variables_.end()) return found->second;
  return find_global(*this, name);
}

void Interpreter::enter(const Scope& scope, const Ref<Activation>& frame) {
  step(scope.loads.size());
  for (const Load& load : scope.loads) {
    Value& target = frame->slots[static_cast<size_t>(load.slot)];
    switch (load.how) {
      case Load::How::kParameter:
        break;
      case Load::How::kResolve:
        target = find_variable(load.name);
        break;
      case Load::How::kAlias:
        target = slot(load.reference, frame);
        break;
      case Load::How::kUndefined:
        target = Value::missing();
        break;
    }
  }
}

void Interpreter::leave(const Scope& scope, const Ref<Activation>& frame) {
  for (const Load& load : scope.loads) frame->slots[static_cast<size_t>(load.slot)] = Value::missing();
}

Interpreter::Flow Interpreter::execute(const Body& body, const Ref<Activation>& frame, std::string& out) {
  for (const StmtPtr& each : body) {
    const Flow flow = execute(*each, frame, out);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Stmt& stmt, const Ref<Activation>& frame, std::string& out) {
  step();
  line_ = stmt.line;
  switch (stmt.kind) {
    case StmtKind::kText:
      out += stmt.text;
      check_string_size(out.size());
      break;
    case StmtKind::kOutput:
      for (const ExprPtr& each : stmt.exprs) write(evaluate(*each, frame), out);
      break;
    case StmtKind::kSet:
      check_namespaces(*stmt.target, frame);
      assign(*stmt.target, evaluate(*stmt.exprs[0], frame), frame);
      export_names(stmt, frame);
      break;
    case StmtKind::kSetBlock:
      return execute_set_block(stmt, frame);
    case StmtKind::kIf:
      return execute_if(stmt, frame, out);
    case StmtKind::kFor:
      return execute_for(stmt, frame, out);
    case StmtKind::kMacro:
      slot(stmt.reference, frame) = make_macro(*stmt.macro, frame);
      export_names(stmt, frame);
      break;
    case StmtKind::kCallBlock: {
      const Value caller = make_macro(*stmt.macro, frame);
      write(evaluate_call(*stmt.exprs[0], frame, &caller), out);
      break;
    }
    case StmtKind::kGeneration: {
      Arguments none;
      const size_t begin = out.size();
      write(call_macro(*stmt.macro, frame, none), out);
      if (generated_ != nullptr && &out == output_) generated_->push_back({begin, out.size()});
      break;
    }
    case StmtKind::kFilterBlock:
      return execute_filter_block(stmt, frame, out);
    case StmtKind::kWith:
      return execute_with(stmt, frame, out);
    case StmtKind::kBlock: {
      const Deeper deeper(*this);
      Running running(*this, Ref<Activation>(), stmt.code->slots);
      enter(stmt.scope, running.frame);
      execute(stmt.body, running.frame, out);
      running.finish();
      break;
    }
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

void Interpreter::write(const Value& value, std::string& out) {
  append_text(out, value);
  check_string_size(out.size());
}

Interpreter::Flow Interpreter::execute_if(const Stmt& stmt, const Ref<Activation>& frame, std::string& out) {
  for (const Branch& branch : stmt.branches) {
    if (truth(evaluate(*branch.test, frame))) return execute(branch.body, frame, out);
  }
  return execute(stmt.otherwise, frame, out);
}

Interpreter::Flow Interpreter::execute_with(const Stmt& stmt, const Ref<Activation>& frame,
                                            std::string& out) {
  enter(stmt.scope, frame);
  for (size_t i = 0; i < stmt.targets.size(); ++i) {
    assign(*stmt.targets[i], evaluate(*stmt.exprs[i], frame), frame);
  }
  const Flow flow = execute(stmt.body, frame, out);
  leave(stmt.scope, frame);
  return flow;
}

Interpreter::Flow Interpreter::execute_set_block(const Stmt& stmt, const Ref<Activation>& frame) {
  enter(stmt.scope, frame);
  std::string text;
  const Flow flow = execute(stmt.body, frame, text);
  if (flow != Flow::kNormal) return flow;
  Value value(std::move(text));
  if (stmt.filter) value = evaluate_filter(*stmt.filter, frame, &value);
  assign(*stmt.target, value, frame);
  export_names(stmt, frame);
  leave(stmt.scope, frame);
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_filter_block(const Stmt& stmt, const Ref<Activation>& frame,
                                                    std::string& out) {
  enter(stmt.scope, frame);
  std::string text;
  const Flow flow = execute(stmt.body, frame, text);
  if (flow != Flow::kNormal) return flow;
  const Value value(std::move(text));
  write(evaluate_filter(*stmt.filter, frame, &value), out);
  leave(stmt.scope, frame);
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_for(const Stmt& stmt, const Ref<Activation>& frame, std::string& out) {
  const Value iterable = evaluate(*stmt.exprs[0], frame);
  if (!stmt.recursive) return run_loop(stmt, iterable, 0, frame, out);
  write(recurse(stmt, iterable, 0, frame), out);
  return Flow::kNormal;
}

Value Interpreter::recurse(const Stmt& stmt, const Value& iterable, int depth, const Ref<Activation>& outer) {
  const Deeper deeper(*this);
  Running running(*this, outer, stmt.code->slots);
  std::string text;
  run_loop(stmt, iterable, depth, running.frame, text);
  running.finish();
  return Value(std::move(text));
}

// The items that pass the loop's own "if", found as the loop asks for them.
Ref<Iterator> Interpreter::filtered(const Stmt& stmt, const Value& iterable, const Ref<Activation>& frame) {
  return make<Iterator>(
      [this, &stmt, frame, iterable, source = Ref<Iterator>()](Interpreter& self, Value& item) mutable {
        if (!source) {
          enter(stmt.test_scope, frame);
          source = iterate(iterable);
        }
        while (source->next(self, item)) {
          assign(*stmt.test_target, item, frame);
          if (truth(evaluate(*stmt.test, frame))) return true;
        }
        return false;
      },
      iterable.depth());
}

Interpreter::Flow Interpreter::run_loop(const Stmt& stmt, const Value& iterable, int depth,
                                        const Ref<Activation>& frame, std::string& out) {
  Ref<Iterator> items = stmt.test ? filtered(stmt, iterable, frame) : iterate(iterable);
  Ref<Loop> loop;
  if (stmt.uses_loop) {
    Loop::Recurse recursion;
    if (stmt.recursive) {
      recursion = [&stmt, outer = frame->outer](Interpreter& self, const Value& inner, int level) {
        return self.recurse(stmt, inner, level, outer);
      };
    }
    loop = make<Loop>(items, stmt.test ? std::nullopt : length_of(iterable), depth, std::move(recursion));
  }
  bool completed = false;
  Value item;
  while (loop ? loop->advance(*this, item) : items->next(*this, item)) {
    step();
    line_ = stmt.line;
    assign(*stmt.target, item, frame);
    if (loop) frame->slots[static_cast<size_t>(stmt.loop_slot)] = Value(loop);
    enter(stmt.scope, frame);
    const Flow flow = execute(stmt.body, frame, out);
    if (flow == Flow::kBreak) break;
    // As jinja2's code does it: a turn that is broken off or skipped does not keep the else from running.
    if (flow == Flow::kNormal) completed = true;
  }
  leave(stmt.scope, frame);
  if (loop && loop->references() > 1) keep(loop.get());
  if (completed || stmt.otherwise.empty()) return Flow::kNormal;
  enter(stmt.otherwise_scope, frame);
  const Flow flow = execute(stmt.otherwise, frame, out);
  leave(stmt.otherwise_scope, frame);
  return flow;
}

void Interpreter::check_namespaces(const Expr& target, const Ref<Activation>& frame) {
  if (target.kind == ExprKind::kNamespaceAttribute && !slot(target.reference, frame).is(Kind::kNamespace)) {
    fail("cannot assign attribute on non-namespace object");
  }
  for (const ExprPtr& child : target.children) check_namespaces(*child, frame);
}

void Interpreter::assign(const Expr& target, const Value& value, const Ref<Activation>& frame) {
  if (target.kind == ExprKind::kName) {
    slot(target.reference, frame) = value;
    return;
  }
  if (target.kind == ExprKind::kNamespaceAttribute) {
    const Value& space = slot(target.reference, frame);
    if (!space.is(Kind::kNamespace)) fail("cannot assign attribute on non-namespace object");
    if (target.attribute[0] == '_') {
      fail("Chat templates cannot store underscore-prefixed attributes on a namespace, but got {}",
           jinja::quoted(target.attribute));
    }
    space.name_space().set(target.attribute, value);
    return;
  }
  if (!is_iterable(value)) fail("cannot unpack non-iterable {} object", type_name(value));
  const std::vector<Value> items = to_vector(*this, value);
  if (items.size() < target.children.size()) {
    fail("not enough values to unpack (expected {}, got {})", target.children.size(), items.size());
  }
  if (items.size() > target.children.size())
    fail("too many values to unpack (expected {})", target.children.size());
  for (size_t i = 0; i < items.size(); ++i) assign(*target.children[i], items[i], frame);
}

void Interpreter::export_names(const Stmt& stmt, const Ref<Activation>& frame) {
  for (const auto& [name, reference] : stmt.exports) exported_[name] = slot(reference, frame);
}

Value Interpreter::make_macro(const MacroCode& code, const Ref<Activation>& frame) {
  return Value(make<Macro>(code, frame));
}

Value Interpreter::call_macro(const MacroCode& code, const Ref<Activation>& outer, Arguments& arguments) {
  const Deeper deeper(*this);
  const int calling_line = line_;
  Running running(*this, outer, code.slots);
  const Ref<Activation>& frame = running.frame;
  const size_t given = std::min(arguments.positional.size(), code.parameters.size());
  const auto set = [&](int at, Value value) { frame->slots[static_cast<size_t>(at)] = std::move(value); };
  bool found_caller = false;
  for (size_t i = 0; i < code.parameters.size(); ++i) {
    Value value = i < given ? arguments.positional[i] : Value::missing();
    if (i >= given) take(arguments, code.parameters[i], value);
    if (code.parameters[i] == "caller") found_caller = true;
    set(code.parameter_slots[i], std::move(value));
  }
  if (code.takes_caller && !found_caller) {
    Value caller;
    if (!take(arguments, "caller", caller) || caller.is_none())
      caller = Value::undefined("No caller defined");
    set(code.caller_slot, std::move(caller));
  }
  if (code.takes_kwargs) {
    const auto named = make<Dict>();
    for (auto& [name, value] : arguments.named) named->set(Value(std::string_view(name)), std::move(value));
    set(code.kwargs_slot, Value(named));
  } else if (!arguments.named.empty()) {
    fail("macro '{}' takes no keyword argument '{}'", code.name, arguments.named[0].first);
  }
  if (code.takes_varargs) {
    const auto first = arguments.positional.begin() + static_cast<ptrdiff_t>(given);
    set(code.varargs_slot, Value::tuple(std::vector<Value>(first, arguments.positional.end())));
  } else if (arguments.positional.size() > code.parameters.size()) {
    fail("macro '{}' takes not more than {} argument(s)", code.name, code.parameters.size());
  }
  enter(code.scope, frame);
  const size_t required = code.parameters.size() - code.defaults.size();
  for (size_t i = 0; i < code.parameters.size(); ++i) {
    if (!frame->slots[static_cast<size_t>(code.parameter_slots[i])].is(Kind::kMissing)) continue;
    set(code.parameter_slots[i],
        i < required ? Value::undefined(fmt::format("parameter '{}' was not provided", code.parameters[i]))
                     : evaluate(*code.defaults[i - required], frame));
  }
  std::string text;
  execute(code.body, frame, text);
  running.finish();
  line_ = calling_line;
  return Value(std::move(text));
}

}  // namespace qiao::jinja
