// A parsed template: expressions, statements, and the functions (template, macros, blocks…) whose variables
// live in numbered slots. Built by the parser, completed by the resolver, then read only.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_builtins.h"
#include "text/jinja_value.h"

namespace qiao::jinja {

enum class ExprKind : uint8_t {
  kConstant,
  kName,
  kNamespaceAttribute,  // a.b as the target of an assignment
  kTuple,
  kList,
  kDict,       // key, value, key, value…
  kAttribute,  // children[0].text
  kItem,       // children[0][children[1]]
  kSlice,      // children[0][a:b:c], each a child, nullptr where absent
  kCall,
  kFilter,
  kTest,
  kConditional,  // a if b else c: b, a, c (c may be nullptr)
  kNot,
  kNegate,
  kPositive,
  kAnd,
  kOr,
  kConcat,
  kCompare,  // operands; operators in `operators`
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
};

enum class Comparison : uint8_t {
  kEqual,
  kNotEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  kIn,
  kNotIn
};

// Where a variable lives: `hops` functions outward, slot number `slot` there.
struct Reference {
  int hops = 0;
  int slot = -1;
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star;         // *args
  ExprPtr double_star;  // **kwargs
};

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  int line = 0;
  int height = 1;             // of the tree below
  std::string text;           // of a name, an attribute, a filter, a test
  std::string attribute;      // of a kNamespaceAttribute
  Value constant;             // strings are immortal
  Reference reference;        // of a name
  AttributeNames attributes;  // of an attribute: the methods that have its name
  std::vector<ExprPtr> children;
  std::vector<Comparison> operators;
  std::unique_ptr<CallArguments> arguments;  // of a call, a filter, a test
  const Filter* filter = nullptr;
  const Test* test = nullptr;
};

enum class StmtKind : uint8_t {
  kText,
  kOutput,
  kSet,
  kSetBlock,
  kIf,
  kFor,
  kMacro,
  kCallBlock,
  kGeneration,
  kFilterBlock,
  kWith,
  kBlock,
  kBreak,
  kContinue,
};

struct Stmt;
using StmtPtr = std::unique_ptr<Stmt>;
using Body = std::vector<StmtPtr>;

// What happens to a variable when a scope is entered.
struct Load {
  enum class How : uint8_t { kParameter, kResolve, kAlias, kUndefined };
  How how = How::kUndefined;
  int slot = -1;
  std::string name;     // kResolve: of the render's variable
  Reference reference;  // kAlias
};

struct Scope {
  std::vector<Load> loads;
};

// The body of a template, macro, call block, block or recursive loop: what gets slots of its own when it
// runs.
struct Code {
  int slots = 0;
};

struct MacroCode : Code {
  std::string name;  // empty: of a call block
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  std::vector<int> parameter_slots;
  bool takes_caller = false, takes_kwargs = false, takes_varargs = false;
  int caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;
  Scope scope;
  Body body;
};

struct Branch {
  ExprPtr test;
  Body body;
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  std::string text;            // data; the name of a block
  std::vector<ExprPtr> exprs;  // output; the values of a with; [iterable] of a for; [value] of a set; [call]
  ExprPtr target;              // of a set, a for
  std::vector<ExprPtr> targets;  // of a with
  ExprPtr filter;       // of a filter block, a set block (may be nullptr): its innermost child is absent
  ExprPtr test;         // of a for (may be nullptr)
  ExprPtr test_target;  // its target, for the test alone: it may look ahead of the body
  std::vector<Branch> branches;  // of an if
  Body body, otherwise;
  Scope scope, test_scope, otherwise_scope;
  bool recursive = false, uses_loop = false;
  int loop_slot = -1;
  std::unique_ptr<Code> code;        // of a recursive loop or a block
  std::unique_ptr<MacroCode> macro;  // of a macro, a call block
  Reference reference;               // of a macro's name
  // Names that a set at the top level of a template with blocks exports to them.
  std::vector<std::pair<std::string, Reference>> exports;
};

struct Template {
  std::vector<std::unique_ptr<Object>> constants;  // outlive the expressions that name them
  Code code;
  Scope scope;
  Body body;
  bool has_blocks = false;
};

}  // namespace qiao::jinja
