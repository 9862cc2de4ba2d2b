#include "text/jinja_symbols.h"

namespace qiao::jinja {
namespace {

// Calls `see(expr)` for each expression below `arguments`.
template <typename See>
void each_argument(const CallArguments& arguments, const See& see) {
  for (const ExprPtr& child : arguments.positional) see(child.get());
  for (const auto& [name, child] : arguments.named) see(child.get());
  see(arguments.star.get());
  see(arguments.double_star.get());
}

class UndeclaredFinder {
 public:
  explicit UndeclaredFinder(std::set<std::string> names) : names_(std::move(names)) {}
  std::set<std::string> found;

  void body(const Body& statements) {
    for (const StmtPtr& each : statements) statement(*each);
  }

 private:
  void expression(const Expr* expr) {
    if (!expr) return;
    if (expr->kind == ExprKind::kName && names_.count(expr->text) > 0) found.insert(expr->text);
    for (const ExprPtr& child : expr->children) expression(child.get());
    if (expr->arguments) each_argument(*expr->arguments, [this](const Expr* child) { expression(child); });
  }

  void target(const Expr& expr) {
    if (expr.kind == ExprKind::kName) names_.erase(expr.text);
    for (const ExprPtr& child : expr.children) target(*child);
  }

  void macro(const MacroCode& code) {
    for (const std::string& name : code.parameters) names_.erase(name);
    for (const ExprPtr& each : code.defaults) expression(each.get());
    body(code.body);
  }

  void statement(const Stmt& stmt) {
    if (stmt.kind == StmtKind::kBlock) return;
    if (stmt.target) target(*stmt.target);
    for (const ExprPtr& each : stmt.targets) target(*each);
    for (const ExprPtr& each : stmt.exprs) expression(each.get());
    for (const Branch& branch : stmt.branches) {
      expression(branch.test.get());
      body(branch.body);
    }
    if (stmt.kind == StmtKind::kSetBlock) expression(stmt.filter.get());
    if (stmt.macro) macro(*stmt.macro);
    body(stmt.body);
    body(stmt.otherwise);
    if (stmt.kind == StmtKind::kFilterBlock) expression(stmt.filter.get());
    expression(stmt.test.get());
  }

  std::set<std::string> names_;
};

}  // namespace

const Ident* Symbols::find(const std::string& name) const {
  for (const Symbols* scope = this; scope; scope = scope->base_ ? scope->base_ : scope->parent_) {
    if (const auto found = scope->names_.find(name); found != scope->names_.end()) return &found->second;
  }
  return nullptr;
}

bool Symbols::has_own(const std::string& name) const {
  for (const Symbols* scope = this; scope; scope = scope->base_) {
    if (scope->names_.count(name) > 0) return true;
  }
  return false;
}

bool Symbols::has_stored(const std::string& name) const {
  for (const Symbols* scope = this; scope; scope = scope->base_) {
    if (scope->stores_.count(name) > 0) return true;
  }
  return false;
}

Symbols Symbols::branch() const {
  Symbols result(parent_, suffix_);
  result.base_ = this;
  return result;
}

void Symbols::define(const std::string& name, Origin origin) {
  const Ident ident{level_, name + suffix_};
  names_[name] = ident;
  origins_[ident] = std::move(origin);
}

void Symbols::declare_parameter(const std::string& name) {
  stores_.insert(name);
  Origin origin;
  origin.how = Load::How::kParameter;
  define(name, std::move(origin));
}

void Symbols::store(const std::string& name) {
  stores_.insert(name);
  if (has_own(name)) return;
  const Ident* outer = parent_ ? parent_->find(name) : nullptr;
  Origin origin;
  if (outer) {
    origin.how = Load::How::kAlias;
    origin.outer = *outer;
  }
  define(name, std::move(origin));
}

void Symbols::load(const std::string& name) {
  if (find(name)) return;
  Origin origin;
  origin.how = Load::How::kResolve;
  origin.name = name;
  define(name, std::move(origin));
}

void Symbols::visit(const Body& body) {
  for (const StmtPtr& each : body) visit(*each);
}

void Symbols::visit(const Expr* expression) {
  if (!expression) return;
  if (expression->kind == ExprKind::kName) load(expression->text);
  for (const ExprPtr& child : expression->children) visit(child.get());
  if (expression->arguments) {
    each_argument(*expression->arguments, [this](const Expr* child) { visit(child); });
  }
}

void Symbols::visit_target(const Expr& target, bool as_parameter) {
  if (target.kind == ExprKind::kTuple) {
    for (const ExprPtr& child : target.children) visit_target(*child, as_parameter);
  } else if (target.kind == ExprKind::kNamespaceAttribute) {
    load(target.text);
  } else if (as_parameter) {
    declare_parameter(target.text);
  } else {
    store(target.text);
  }
}

void Symbols::visit(const Stmt& stmt) {
  switch (stmt.kind) {
    case StmtKind::kIf:
      visit_branches(stmt, 0);
      break;
    case StmtKind::kSet:
      visit(stmt.exprs[0].get());
      visit_target(*stmt.target, false);
      break;
    case StmtKind::kSetBlock:
      visit_target(*stmt.target, false);
      break;
    case StmtKind::kMacro:
      store(stmt.macro->name);
      break;
    case StmtKind::kFilterBlock:
      visit(stmt.filter.get());
      break;
    case StmtKind::kOutput:
    case StmtKind::kFor:
    case StmtKind::kCallBlock:
    case StmtKind::kWith:
      for (const ExprPtr& each : stmt.exprs) visit(each.get());
      break;
    case StmtKind::kText:
    case StmtKind::kGeneration:
    case StmtKind::kBlock:
    case StmtKind::kBreak:
    case StmtKind::kContinue:
      break;
  }
}

void Symbols::visit_branches(const Stmt& stmt, size_t first) {
  visit(stmt.branches[first].test.get());
  std::vector<Symbols> copies(3, branch());
  copies[0].visit(stmt.branches[first].body);
  if (first == 0) {
    for (size_t i = 1; i < stmt.branches.size(); ++i) copies[1].visit_branches(stmt, i);
    copies[2].visit(stmt.otherwise);
  }
  merge(copies);
}

void Symbols::merge(const std::vector<Symbols>& branches) {
  std::set<std::string> stored;
  for (const Symbols& branch : branches) {
    for (const std::string& name : branch.stores_) {
      if (!has_stored(name)) stored.insert(name);
    }
  }
  for (const Symbols& branch : branches) {
    for (const auto& [name, ident] : branch.names_) names_[name] = ident;
    for (const auto& [ident, origin] : branch.origins_) origins_[ident] = origin;
    stores_.insert(branch.stores_.begin(), branch.stores_.end());
  }
  for (const std::string& name : stored) {
    const Ident* outer = parent_ ? parent_->find(name) : nullptr;
    Origin& origin = origins_[*find(name)];
    origin.how = outer ? Load::How::kAlias : Load::How::kResolve;
    if (outer) origin.outer = *outer;
    origin.name = name;
  }
}

std::set<std::string> find_undeclared(const Body& body, std::set<std::string> names) {
  UndeclaredFinder finder(std::move(names));
  finder.body(body);
  return finder.found;
}

}  // namespace qiao::jinja
