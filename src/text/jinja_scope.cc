#include "text/jinja_scope.h"

#include "base/error.h"
#include "text/jinja_symbols.h"

namespace qiao::jinja {
namespace {

// What gets slots of its own: the template, a macro, a recursive loop, a block.
struct ScopedFunction {
  ScopedFunction* outer = nullptr;
  int level = 0;  // of its outermost scope: idents of lower levels live further out
  Code* code = nullptr;
  std::map<Ident, int> slots;
};

struct Frame {
  const Symbols* symbols = nullptr;
  ScopedFunction* function = nullptr;
  bool top_level = false;
  bool soft = false;     // in a condition: an unknown filter fails when it is used
  bool in_loop = false;  // of this function
};

ExprPtr clone_target(const Expr& target) {
  auto copy = std::make_unique<Expr>();
  copy->kind = target.kind;
  copy->line = target.line;
  copy->text = target.text;
  copy->attribute = target.attribute;
  for (const ExprPtr& child : target.children) copy->children.push_back(clone_target(*child));
  return copy;
}

class Resolver {
 public:
  explicit Resolver(Template& source) : template_(source) {}

  void run() {
    ScopedFunction function{nullptr, 0, &template_.code, {}};
    Symbols symbols(nullptr);
    symbols.visit(template_.body);
    Frame frame{&symbols, &function, true, false, false};
    template_.scope = scope(frame);
    body(template_.body, frame);
  }

 private:
  [[noreturn]] static void fail(int line, std::string_view message) {
    throw_error(ErrorKind::kInvalidInput, "line {}: {}", line, message);
  }

  static Reference locate(const Ident& ident, ScopedFunction* function) {
    Reference reference;
    while (function->level > ident.level && function->outer) {
      function = function->outer;
      ++reference.hops;
    }
    const auto [found, added] = function->slots.emplace(ident, function->code->slots);
    if (added) ++function->code->slots;
    reference.slot = found->second;
    return reference;
  }

  static Reference locate(const std::string& name, int line, const Frame& frame) {
    const Ident* ident = frame.symbols->find(name);
    if (!ident) fail(line, fmt::format("the name '{}' is unknown where it is used", name));
    return locate(*ident, frame.function);
  }

  // What entering a frame whose names have been collected does.
  static Scope scope(const Frame& frame) {
    Scope result;
    for (const auto& [ident, origin] : frame.symbols->origins()) {
      Load load;
      load.how = origin.how;
      load.slot = locate(ident, frame.function).slot;
      load.name = origin.name;
      if (origin.how == Load::How::kAlias) load.reference = locate(origin.outer, frame.function);
      result.loads.push_back(std::move(load));
    }
    return result;
  }

  static Frame inner(const Frame& outer, const Symbols& symbols) {
    return {&symbols, outer.function, false, false, outer.in_loop};
  }

  void body(Body& statements, const Frame& frame) {
    for (const StmtPtr& each : statements) statement(*each, frame);
  }

  void expression(Expr* expr, const Frame& frame) {
    if (!expr) return;
    Frame inside = frame;
    switch (expr->kind) {
      case ExprKind::kName:
        expr->reference = locate(expr->text, expr->line, frame);
        break;
      case ExprKind::kFilter:
        if (!expr->filter && !frame.soft) fail(expr->line, fmt::format("No filter named '{}'.", expr->text));
        break;
      case ExprKind::kTest:
        if (!expr->test && !frame.soft) fail(expr->line, fmt::format("No test named '{}'.", expr->text));
        break;
      case ExprKind::kConditional:
        inside.soft = true;
        break;
      default:
        break;
    }
    for (const ExprPtr& child : expr->children) expression(child.get(), inside);
    if (!expr->arguments) return;
    for (const ExprPtr& child : expr->arguments->positional) expression(child.get(), inside);
    for (const auto& [name, child] : expr->arguments->named) expression(child.get(), inside);
    expression(expr->arguments->star.get(), inside);
    expression(expr->arguments->double_star.get(), inside);
  }

  void target(Expr& expr, const Frame& frame) {
    if (expr.kind == ExprKind::kTuple) {
      for (const ExprPtr& child : expr.children) target(*child, frame);
      return;
    }
    if (expr.kind == ExprKind::kName && expr.text == "loop" && loops_ > 0) {
      fail(expr.line, "Can't assign to special loop variable in for-loop target");
    }
    expr.reference = locate(expr.text, expr.line, frame);
  }

  void add_exports(const Expr& target, std::vector<std::pair<std::string, Reference>>& exports) {
    if (target.kind == ExprKind::kName) exports.emplace_back(target.text, target.reference);
    for (const ExprPtr& child : target.children) add_exports(*child, exports);
  }

  void statement(Stmt& stmt, const Frame& frame) {
    switch (stmt.kind) {
      case StmtKind::kText:
        break;
      case StmtKind::kOutput:
        for (const ExprPtr& each : stmt.exprs) expression(each.get(), frame);
        break;
      case StmtKind::kSet:
        target(*stmt.target, frame);
        expression(stmt.exprs[0].get(), frame);
        break;
      case StmtKind::kSetBlock:
        set_block(stmt, frame);
        break;
      case StmtKind::kIf: {
        Frame soft = frame;
        soft.soft = true;
        for (Branch& branch : stmt.branches) {
          expression(branch.test.get(), soft);
          body(branch.body, soft);
        }
        body(stmt.otherwise, soft);
        break;
      }
      case StmtKind::kFor:
        for_loop(stmt, frame);
        break;
      case StmtKind::kMacro:
        macro(*stmt.macro, stmt.line, frame);
        stmt.reference = locate(stmt.macro->name, stmt.line, frame);
        if (frame.top_level && template_.has_blocks)
          stmt.exports.emplace_back(stmt.macro->name, stmt.reference);
        break;
      case StmtKind::kCallBlock:
        macro(*stmt.macro, stmt.line, frame);
        expression(stmt.exprs[0].get(), frame);
        break;
      case StmtKind::kGeneration:
        macro(*stmt.macro, stmt.line, frame);
        break;
      case StmtKind::kFilterBlock: {
        Symbols symbols(frame.symbols);
        symbols.visit(stmt.body);
        symbols.visit(stmt.filter.get());
        const Frame filter_frame = inner(frame, symbols);
        stmt.scope = scope(filter_frame);
        body(stmt.body, filter_frame);
        expression(stmt.filter.get(), filter_frame);
        break;
      }
      case StmtKind::kWith: {
        Symbols symbols(frame.symbols);
        for (const ExprPtr& each : stmt.targets) symbols.visit_target(*each, true);
        symbols.visit(stmt.body);
        const Frame with_frame = inner(frame, symbols);
        stmt.scope = scope(with_frame);
        for (const ExprPtr& each : stmt.targets) target(*each, with_frame);
        for (const ExprPtr& each : stmt.exprs) expression(each.get(), frame);
        body(stmt.body, with_frame);
        break;
      }
      case StmtKind::kBlock:
        block(stmt);
        break;
      case StmtKind::kBreak:
      case StmtKind::kContinue:
        if (!frame.in_loop) fail(stmt.line, "break or continue outside of a loop");
        break;
    }
    if (frame.top_level && template_.has_blocks && stmt.target && stmt.kind != StmtKind::kFor) {
      add_exports(*stmt.target, stmt.exports);
    }
  }

  void set_block(Stmt& stmt, const Frame& frame) {
    Symbols symbols(frame.symbols);
    symbols.visit(stmt.body);
    const Frame block_frame = inner(frame, symbols);
    stmt.scope = scope(block_frame);
    body(stmt.body, block_frame);
    target(*stmt.target, frame);
    expression(stmt.filter.get(), block_frame);
  }

  void for_loop(Stmt& stmt, const Frame& frame) {
    stmt.uses_loop = stmt.recursive || !find_undeclared(stmt.body, {"loop"}).empty();
    Symbols loop_symbols(frame.symbols);
    Symbols test_symbols(frame.symbols, "?");  // names apart from the body's: the test runs ahead of it
    Symbols else_symbols(frame.symbols);
    ScopedFunction recursion{frame.function, loop_symbols.level(), nullptr, {}};
    Frame loop_frame = inner(frame, loop_symbols);
    Frame else_frame = inner(frame, else_symbols);
    if (stmt.recursive) {
      stmt.code = std::make_unique<Code>();
      recursion.code = stmt.code.get();
      loop_frame.function = &recursion;
      else_frame.function = &recursion;
      else_frame.in_loop = false;
    }
    loop_frame.in_loop = true;
    Frame test_frame = loop_frame;
    test_frame.symbols = &test_symbols;

    ++loops_;
    if (stmt.uses_loop) loop_symbols.declare_parameter("loop");
    loop_symbols.visit_target(*stmt.target, true);
    loop_symbols.visit(stmt.body);
    stmt.scope = scope(loop_frame);
    if (stmt.uses_loop) stmt.loop_slot = locate("loop", stmt.line, loop_frame).slot;
    if (!stmt.otherwise.empty()) {
      else_symbols.visit(stmt.otherwise);
      stmt.otherwise_scope = scope(else_frame);
    }
    if (stmt.test) {
      stmt.test_target = clone_target(*stmt.target);
      test_symbols.visit_target(*stmt.test_target, true);
      test_symbols.visit(stmt.test.get());
      stmt.test_scope = scope(test_frame);
      target(*stmt.test_target, test_frame);
      expression(stmt.test.get(), test_frame);
    }
    expression(stmt.exprs[0].get(), frame);
    target(*stmt.target, loop_frame);
    body(stmt.body, loop_frame);
    body(stmt.otherwise, else_frame);
    --loops_;
  }

  void macro(MacroCode& code, int line, const Frame& frame) {
    Symbols symbols(frame.symbols);
    for (const std::string& name : code.parameters) symbols.declare_parameter(name);
    for (const ExprPtr& each : code.defaults) symbols.visit(each.get());
    symbols.visit(code.body);
    const std::set<std::string> special = find_undeclared(code.body, {"caller", "kwargs", "varargs"});
    ScopedFunction function{frame.function, symbols.level(), &code, {}};
    const Frame macro_frame{&symbols, &function, false, false, false};
    const auto index_of = [&](std::string_view name) {
      size_t index = 0;
      while (index < code.parameters.size() && code.parameters[index] != name) ++index;
      return index;
    };
    if (special.count("caller") > 0) {
      code.takes_caller = true;
      const size_t index = index_of("caller");
      if (index == code.parameters.size()) {
        symbols.declare_parameter("caller");
        code.caller_slot = locate("caller", line, macro_frame).slot;
      } else if (index + code.defaults.size() < code.parameters.size()) {
        fail(line, "the special \"caller\" argument of a macro must be omitted or be given a default");
      }
    }
    if (special.count("kwargs") > 0 && index_of("kwargs") == code.parameters.size()) {
      code.takes_kwargs = true;
      symbols.declare_parameter("kwargs");
      code.kwargs_slot = locate("kwargs", line, macro_frame).slot;
    }
    if (special.count("varargs") > 0 && index_of("varargs") == code.parameters.size()) {
      code.takes_varargs = true;
      symbols.declare_parameter("varargs");
      code.varargs_slot = locate("varargs", line, macro_frame).slot;
    }
    code.scope = scope(macro_frame);
    for (const std::string& name : code.parameters) {
      code.parameter_slots.push_back(locate(name, line, macro_frame).slot);
    }
    for (const ExprPtr& each : code.defaults) expression(each.get(), macro_frame);
    body(code.body, macro_frame);
  }

  void block(Stmt& stmt) {
    ScopedFunction function{nullptr, 0, stmt.code.get(), {}};
    Symbols symbols(nullptr);
    symbols.visit(stmt.body);
    const Frame frame{&symbols, &function, false, false, false};
    stmt.scope = scope(frame);
    body(stmt.body, frame);
  }

  Template& template_;
  int loops_ = 0;  // loops around, of any function
};

}  // namespace

void resolve(Template& source) { Resolver(source).run(); }

}  // namespace qiao::jinja
