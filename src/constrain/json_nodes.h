// A schema compiled for running: every set of schemas that can meet a value is a node, with what it allows of
// each type.
#pragma once

#include <bitset>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "constrain/constraint.h"
#include "constrain/json_schema.h"

namespace qiao::constrain {

struct JsonObject {
  struct Name {
    uint32_t language;  // the name alone
    uint32_t node;
    bool required;
    bool possible;  // some value fits
  };
  struct Class {  // keys that are none of the names
    uint32_t language;
    uint32_t node;
    bool possible;
  };
  std::vector<Name> names;
  std::vector<Class> classes;
  uint32_t min = 0, max = kUnbounded;
  uint32_t required = 0, possible_names = 0;
  bool open = false;  // some class is possible
  bool counts_others() const { return min > 0 || max != kUnbounded; }
};

struct JsonArray {
  std::vector<uint32_t> prefix;  // nodes
  uint32_t rest = 0;
  uint32_t min = 0, max = kUnbounded;
  bool has_contains = false;
  std::vector<uint32_t> prefix_with, prefix_without;  // nodes of items that hold to contains, or do not
  uint32_t rest_with = 0, rest_without = 0;
  uint32_t min_contains = 0, max_contains = kUnbounded;
  std::vector<uint32_t> unique;  // nodes of one value each: every one at most once; in place of `rest`

  static uint32_t at(const std::vector<uint32_t>& prefix, uint32_t rest, uint32_t index) {
    return index < prefix.size() ? prefix[index] : rest;
  }
  uint32_t item(uint32_t index) const { return at(prefix, rest, index); }
};

struct JsonNode {
  bool null = false, yes = false, no = false;
  std::vector<uint32_t> numbers, strings, arrays, objects;  // indices into the lists of JsonNodes
};

// All nodes of a schema, made at once, so that whatever is not supported is known before a text begins.
class JsonNodes {
 public:
  JsonNodes(Json schema, std::string_view where, const JsonStyle& style, const ConstraintLimits& limits);

  uint32_t root() const { return root_; }
  const JsonNode& node(uint32_t id) const { return nodes_[id]; }
  const NumberDfa& number(uint32_t id) const { return numbers_[id]; }
  StringLanguage& language(uint32_t id) { return languages_[id]; }
  const JsonObject& object(uint32_t id) const { return objects_[id]; }
  const JsonArray& array(uint32_t id) const { return arrays_[id]; }
  uint32_t any_text() const { return any_text_; }

 private:
  uint32_t node_of(const AtomSet& set);
  void fill(uint32_t id);
  uint32_t number_of(NumberSpec spec);
  void add_unique(const ArraySpec& spec, JsonArray& array);
  uint32_t string_of(const StringSpec& spec);
  void spend(const StringLanguage& language);
  uint32_t add_object(const ObjectSpec& spec);
  uint32_t add_array(const ArraySpec& spec);
  void add_classes(const ObjectSpec& spec, const std::vector<std::string>& names, JsonObject& object);
  bool name_allowed(const ObjectSpec& spec, const std::string& name);
  void find_possible();
  bool object_possible(JsonObject& object);
  bool array_possible(JsonArray& array);

  Json schema_;
  SchemaReader reader_;
  ConstraintLimits limits_;
  bool digits_only_;  // integers
  size_t spent_ = 0;  // on all languages
  std::map<AtomSet, uint32_t> index_;
  std::vector<AtomSet> sets_;
  std::vector<JsonNode> nodes_;
  std::vector<bool> possible_;
  std::vector<NumberDfa> numbers_;
  std::unordered_map<std::string, uint32_t> number_index_;
  std::vector<StringLanguage> languages_;
  std::map<std::string, uint32_t> string_index_;
  std::vector<JsonObject> objects_;
  std::vector<JsonArray> arrays_;
  uint32_t root_ = 0, any_text_ = 0;
};

}  // namespace qiao::constrain
