// The functions that every template can call.
#include <chrono>
#include <ctime>

#include "text/jinja_builtins.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

Value function(const char* name, NativeFunction::Body body) {
  return Value(make<NativeFunction>(name, std::move(body)));
}

Value range_function(Interpreter&, Arguments& arguments) {
  const Bound bound("range", arguments, {kPositional, kPositional, kPositional}, 1);
  const int64_t by = bound.integer(2, 1);
  if (by == 0) fail("range() arg 3 must not be zero");
  if (!bound[1]) return Value(make<Range>(0, bound.integer(0, 0), by));
  return Value(make<Range>(bound.integer(0, 0), bound.integer(1, 0), by));
}

// dict(mapping or pairs, **named)
Ref<Dict> make_dict(Interpreter& interpreter, const char* name, const Arguments& arguments) {
  if (arguments.positional.size() > 1) fail("{} expected at most 1 argument", name);
  const auto dict = make<Dict>();
  for (const Value& from : arguments.positional) {
    require_defined(from);
    if (from.is(Kind::kDict)) {
      for (const auto& [key, value] : from.dict().entries()) dict->set(key, value);
      continue;
    }
    for (const Value& pair : to_vector(interpreter, from)) {
      std::vector<Value> both = to_vector(interpreter, pair);
      if (both.size() != 2)
        fail("dictionary update sequence element has length {}; 2 is required", both.size());
      dict->set(std::move(both[0]), std::move(both[1]));
    }
  }
  for (const auto& [key, value] : arguments.named) dict->set(Value(std::string_view(key)), value);
  return dict;
}

Value namespace_function(Interpreter& interpreter, Arguments& arguments) {
  const Ref<Dict> attributes = make_dict(interpreter, "namespace", arguments);
  const auto space = make<Namespace>();
  for (const auto& [key, value] : attributes->entries()) {
    if (!key.is_string())
      throw_error(ErrorKind::kUnsupported, "a namespace with a name that is not a string");
    if (!key.text().empty() && key.text()[0] == '_') {
      fail("Chat templates cannot store underscore-prefixed attributes on a namespace, but got {}",
           jinja::quoted(key.text()));
    }
    space->set(key.text(), value);
  }
  interpreter.keep(space.get());
  return Value(space);
}

Value joiner_function(Interpreter&, Arguments& arguments) {
  const Bound bound("joiner", arguments, {"sep"});
  return Value(make<NativeFunction>(
      "joiner",
      [separator = bound.value(0, Value(std::string(", "))), used = false](Interpreter&, Arguments&) mutable {
        if (used) return separator;
        used = true;
        return Value(std::string());
      },
      bound[0] ? bound[0]->depth() : 0));
}

Value cycler_function(Interpreter&, Arguments& arguments) {
  if (!arguments.named.empty()) fail("cycler() takes no keyword arguments");
  if (arguments.positional.empty()) fail("at least one item has to be provided");
  return Value(make<Cycler>(std::move(arguments.positional)));
}

Value raise_function(Interpreter&, Arguments& arguments) {
  const Bound bound("raise_exception", arguments, {"message"}, 1);
  fail("{}", to_text(*bound[0]));
}

// What Python's datetime adds to the C library's strftime, for a time without a zone.
std::string without_python_fields(std::string_view format) {
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 >= format.size()) {
      out += format[i];
      continue;
    }
    const char field = format[++i];
    if (field == 'f') {
      out += "000000";
    } else if (field != 'z' && field != 'Z') {
      out += '%';
      out += field;
    }
  }
  return out;
}

Value strftime_function(Interpreter& interpreter, Arguments& arguments) {
  const Bound bound("strftime_now", arguments, {"format"}, 1);
  const std::string format = without_python_fields(bound.text(0, {}));
  const auto clock = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  const std::time_t now = interpreter.now() < 0 ? clock : static_cast<std::time_t>(interpreter.now());
  std::tm parts{};
  if (!localtime_r(&now, &parts)) fail("the time {} has no date", interpreter.now());
  // A character in front tells an empty result from too small a buffer.
  const std::string guarded = "x" + format;
  std::string out(guarded.size() * 4 + 64, '\0');
  size_t size = 0;
  while ((size = std::strftime(out.data(), out.size(), guarded.c_str(), &parts)) == 0) {
    if (out.size() > 1024 * guarded.size() + 4096) fail("strftime_now: a format that is too long");
    out.resize(out.size() * 2);
  }
  out.resize(size);
  return Value(repair_utf8(std::string_view(out).substr(1)));
}

// `dict`: to be called, with the method fromkeys.
class DictFunction : public Function {
 public:
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return Value(make_dict(interpreter, "dict", arguments));
  }
  const char* type_name() const override { return "TemplateDict"; }
  std::string repr() const override { return "<TemplateDict object>"; }
  Value attribute(std::string_view name) const override {
    if (name != "fromkeys") return Value::missing();
    return function("fromkeys", [](Interpreter& interpreter, Arguments& arguments) {
      return find_dict_method("fromkeys")->body(interpreter, Value(), arguments);
    });
  }
};

}  // namespace

Value find_global(Interpreter&, std::string_view name) {
  if (name == "range") return function("range", range_function);
  if (name == "namespace") return function("namespace", namespace_function);
  if (name == "raise_exception") return function("raise_exception", raise_function);
  if (name == "strftime_now") return function("strftime_now", strftime_function);
  if (name == "dict") return Value(make<DictFunction>());
  if (name == "joiner") return function("joiner", joiner_function);
  if (name == "cycler") return function("cycler", cycler_function);
  if (name == "lipsum") {
    return function("lipsum", [](Interpreter&, Arguments&) -> Value {
      throw_error(ErrorKind::kUnsupported, "lipsum() is not supported in chat templates");
    });
  }
  return Value::missing();
}

}  // namespace qiao::jinja
