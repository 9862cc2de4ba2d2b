// Which names a scope reads and sets, and where each comes from.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_ast.h"

namespace qiao::jinja {

// A variable of one scope: scopes of one depth share it, which is harmless, for each sets it when entered.
struct Ident {
  int level = 0;
  std::string name;
  bool operator<(const Ident& other) const {
    return level != other.level ? level < other.level : name < other.name;
  }
};

class Symbols {
 public:
  struct Origin {
    Load::How how = Load::How::kUndefined;
    Ident outer;       // kAlias
    std::string name;  // kResolve
  };

  explicit Symbols(const Symbols* parent, std::string suffix = {})
      : parent_(parent), level_(parent ? parent->level_ + 1 : 0), suffix_(std::move(suffix)) {}

  int level() const { return level_; }
  const std::map<Ident, Origin>& origins() const { return origins_; }
  const Ident* find(const std::string& name) const;

  void declare_parameter(const std::string& name);
  void store(const std::string& name);
  void load(const std::string& name);

  // Everything in `body` that this scope (not a nested one) reads and sets.
  void visit(const Body& body);
  void visit(const Stmt& statement);
  void visit(const Expr* expression);
  void visit_target(const Expr& target, bool as_parameter);

 private:
  void define(const std::string& name, Origin origin);
  void visit_branches(const Stmt& statement, size_t first);
  Symbols branch() const;
  void merge(const std::vector<Symbols>& branches);
  bool has_own(const std::string& name) const;
  bool has_stored(const std::string& name) const;

  const Symbols* parent_;
  const Symbols* base_ = nullptr;  // of a branch: the same scope before it, which it only adds to
  int level_;
  std::string suffix_;
  std::map<std::string, Ident> names_;
  std::map<Ident, Origin> origins_;
  std::set<std::string> stores_;
};

// Which of `names` the statements read before they set them, nested scopes included.
std::set<std::string> find_undeclared(const Body& body, std::set<std::string> names);

}  // namespace qiao::jinja
