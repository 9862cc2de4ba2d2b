// Runs a resolved template over the variables of one render.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/chat_template.h"
#include "text/jinja_ast.h"
#include "text/jinja_loop.h"

namespace qiao::jinja {

// The variables of one run of a template, macro, recursive loop or block. Macros made in it keep it alive.
class Activation : public Collectable {
 public:
  Activation(Ref<Activation> outer, int slots);
  Ref<Activation> outer;
  std::vector<Value> slots;
  void clear() override {
    slots.clear();
    outer = Ref<Activation>();
  }
};

class Interpreter {
 public:
  // `budget` is installed. `now`: see ChatTemplate::render.
  Interpreter(const Template& source, const Json& variables, int64_t now, const Budget& budget);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // `generated`: see ChatTemplate::render.
  std::string run(std::vector<TextSpan>* generated);
  // The line of what runs now, for messages.
  int line() const { return line_; }
  int64_t now() const { return now_; }

  // callee(arguments). Throws Error(kInvalidInput) for what cannot be called.
  Value call(const Value& callee, Arguments& arguments);
  Value call_macro(const MacroCode& code, const Ref<Activation>& outer, Arguments& arguments);
  // Keeps `object` until the render ends, when it is cleared.
  void keep(Collectable* object);

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };
  class Deeper;
  class Running;

  // Statements: jinja_interpreter.cc.
  Flow execute(const Body& body, const Ref<Activation>& frame, std::string& out);
  Flow execute(const Stmt& statement, const Ref<Activation>& frame, std::string& out);
  Flow execute_if(const Stmt& statement, const Ref<Activation>& frame, std::string& out);
  Flow execute_for(const Stmt& statement, const Ref<Activation>& frame, std::string& out);
  Flow execute_with(const Stmt& statement, const Ref<Activation>& frame, std::string& out);
  Flow execute_set_block(const Stmt& statement, const Ref<Activation>& frame);
  Flow execute_filter_block(const Stmt& statement, const Ref<Activation>& frame, std::string& out);
  Flow run_loop(const Stmt& statement, const Value& iterable, int depth, const Ref<Activation>& frame,
                std::string& out);
  Value recurse(const Stmt& statement, const Value& iterable, int depth, const Ref<Activation>& outer);
  Ref<Iterator> filtered(const Stmt& statement, const Value& iterable, const Ref<Activation>& frame);
  void write(const Value& value, std::string& out);
  void assign(const Expr& target, const Value& value, const Ref<Activation>& frame);
  void check_namespaces(const Expr& target, const Ref<Activation>& frame);
  void export_names(const Stmt& statement, const Ref<Activation>& frame);
  void enter(const Scope& scope, const Ref<Activation>& frame);
  void leave(const Scope& scope, const Ref<Activation>& frame);
  Value make_macro(const MacroCode& code, const Ref<Activation>& frame);

  // Expressions: jinja_evaluate.cc.
  Value evaluate(const Expr& expr, const Ref<Activation>& frame);
  Value evaluate_name(const Expr& expr, const Ref<Activation>& frame);
  Value evaluate_call(const Expr& expr, const Ref<Activation>& frame, const Value* caller);
  Value evaluate_filter(const Expr& expr, const Ref<Activation>& frame, const Value* block_text);
  Value evaluate_compare(const Expr& expr, const Ref<Activation>& frame);
  Value evaluate_binary(const Expr& expr, const Ref<Activation>& frame);
  Value evaluate_display(const Expr& expr, const Ref<Activation>& frame);
  void evaluate_arguments(const CallArguments& arguments, const Ref<Activation>& frame, Arguments& result);
  Value& slot(const Reference& reference, const Ref<Activation>& frame) const;

  Value find_variable(const std::string& name);

  const Template& template_;
  const int64_t now_;
  const Budget& budget_;
  int line_ = 1;
  const std::string* output_ = nullptr;  // of the whole template, while it runs
  std::vector<TextSpan>* generated_ = nullptr;
  int calls_ = 0;  // macros and recursive loops under way
  std::map<std::string, Value, std::less<>> variables_;
  std::map<std::string, Value, std::less<>> exported_;
  std::vector<Ref<Collectable>> kept_;
};

}  // namespace qiao::jinja
