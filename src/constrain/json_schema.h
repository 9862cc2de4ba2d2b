// JSON Schema (drafts 4 to 2020-12) brought to a form that an automaton can follow: for each type a list of
// alternatives, each a plain conjunction. allOf and siblings of $ref are conjunctions of such forms, anyOf
// unions, not and oneOf go by De Morgan's rules. Sub-schemas stay sets of schemas that hold together, so that
// recursion stays finite.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "constrain/json_number.h"
#include "constrain/json_string.h"

namespace qiao::constrain {

// A schema that must hold, or must not. A null schema holds for nothing.
struct Atom {
  const Json* schema = nullptr;
  bool negative = false;
  auto operator<=>(const Atom&) const =
      default;  // NOLINT(modernize-use-nullptr): it takes the default for a 0
};
// All of them hold; sorted. Empty: anything.
using AtomSet = std::vector<Atom>;

struct ObjectSpec {
  // One schema's own properties, patternProperties and additionalProperties. A key's value must hold to all
  // groups.
  struct Group {
    std::vector<std::pair<std::string, AtomSet>> names;
    std::vector<std::pair<std::string, AtomSet>> patterns;
    AtomSet additional;
    // For unevaluatedProperties: whether it evaluates what it names, and then whether also all else.
    bool evaluates = false, all = false;
    bool operator==(const Group&) const = default;
  };
  std::vector<Group> groups;
  std::vector<std::string> required;
  uint32_t min = 0, max = kUnbounded;
  std::vector<AtomSet> keys;  // propertyNames
  bool operator==(const ObjectSpec&) const = default;

  ObjectSpec both(const ObjectSpec& other) const;
};

struct ArraySpec {
  std::vector<AtomSet> prefix;
  AtomSet rest;
  uint32_t min = 0, max = kUnbounded;
  std::optional<AtomSet> contains;
  uint32_t min_contains = 1, max_contains = kUnbounded;
  const Json* unique = nullptr;  // the schema that wants no item twice
  // For unevaluatedItems: so many items from the first, or all.
  uint32_t evaluated = 0;
  bool all_evaluated = false;
  bool operator==(const ArraySpec&) const = default;

  const AtomSet& item(size_t index) const { return index < prefix.size() ? prefix[index] : rest; }
};

struct Form {
  bool null = false, yes = false, no = false;
  std::vector<NumberSpec> numbers;
  std::vector<StringSpec> strings;
  std::vector<ArraySpec> arrays;
  std::vector<ObjectSpec> objects;

  static Form anything();
  size_t size() const { return numbers.size() + strings.size() + arrays.size() + objects.size(); }
};

AtomSet both(const AtomSet& a, const AtomSet& b);

// Reads forms off a schema, which must outlive it. Throws Error naming `where`, the schema's place in the
// document and the keyword: kUnsupported for what it cannot hold to exactly, kInvalidInput for malformed
// values.
class SchemaReader {
 public:
  SchemaReader(const Json& root, std::string_view where);

  AtomSet root() const { return atoms(root_); }
  AtomSet only(Json value) { return atoms(made(Json{{"const", std::move(value)}})); }
  Form form(const AtomSet& set);
  const std::string& where() const { return where_; }
  [[noreturn]] void unsupported(const Json& schema, std::string_view keyword,
                                std::string_view why = {}) const;

 private:
  struct Keywords;
  static constexpr int kMaxDepth = 128;
  static constexpr size_t kMaxValues = 100'000;  // of the whole schema, before anything is read
  static constexpr size_t kMaxAlternatives = 2000;
  static constexpr size_t kMaxKeptAlternatives = 200'000;
  static constexpr int kMaxLooks = 1000;
  static constexpr size_t kMaxOneOf = 500, kMaxOverlaps = 2000;

  [[noreturn]] void invalid(const Json& schema, std::string_view keyword, std::string_view expected) const;
  std::string place_of(const Json& schema) const;

  static AtomSet atoms(const Json& schema, bool negative = false);
  Form form(const Atom& atom);
  Form positive(const Json& schema);
  Form negative(const Json& schema);
  Form both(const Form& a, const Form& b);
  void unite(Form& into, Form&& more);

  void check_keywords(const Json& schema) const;
  Form types(const Json& schema, const Json& names);
  Form value(const Json& constant);
  Form not_value(const Json& schema, const Json& constant);
  Form one_of(const Json& schema, const Json& branches);
  NumberSpec number(const Json& schema);
  StringSpec string(const Json& schema);
  ArraySpec array(const Json& schema);
  ObjectSpec object(const Json& schema);
  Form combined(const Json& schema, Form form);
  Form negated_parts(const Json& schema);
  Form with_dependents(const Json& schema, Form form);
  Form any_of(const Json& schema);
  Form with_unevaluated(const Json& schema, Form form);
  static Form silent(Form form);
  std::vector<AtomSet> referred(const Json& schema, bool negative);
  void check_dialect(const Json& root);
  const Json& target(const Json& schema, const char* keyword, const std::string& reference);
  void index_ids(const Json& schema, const std::string& base, int depth);
  bool provably_empty(const AtomSet& set, int depth);
  const Json& made(Json schema);

  uint32_t count(const Json& schema, const char* keyword, uint32_t otherwise) const;
  const Json& object_of(const Json& schema, const char* keyword) const;
  const Json& list_of(const Json& schema, const char* keyword) const;

  const Json& root_;
  std::string where_;
  bool ref_alone_ = false;                      // draft 7 and before: what stands beside $ref does not count
  bool digits_only_ = false;                    // draft 4 and before: 3.0 is no integer
  std::map<std::string, int> dynamic_anchors_;  // how often each name occurs; "" for $recursiveAnchor
  int collecting_ = 0;                          // inside schemas with unevaluated…
  std::map<std::string, const Json*> ids_;
  std::map<const Json*, std::string> bases_;
  std::deque<Json> made_;
  std::set<Atom> open_;
  int depth_ = 0;
  std::map<std::pair<Atom, bool>, Form> forms_;  // read before; whether inside of unevaluated… counts
  size_t kept_alternatives_ = 0;                 // of forms_
  int looks_ = 0;                                // of provably_empty, since the first
};

}  // namespace qiao::constrain
