#include "text/post_processor.h"

#include "base/error.h"
#include "base/quote.h"
#include "text/json_fields.h"

namespace qiao::tokenization {
namespace {

TokenId checked_id(const Json& value, int64_t vocabulary, std::string_view where) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() >= static_cast<uint64_t>(vocabulary)) {
    throw_error(ErrorKind::kInvalidInput, "{}: expected a token id under {}", where, vocabulary);
  }
  return static_cast<TokenId>(value.get<uint64_t>());
}

// ["[SEP]", 102]
TokenId pair_id(const Json& json, const char* key, int64_t vocabulary, std::string_view where) {
  const Json& pair = required_array(json, key, where);
  if (pair.size() != 2) throw_error(ErrorKind::kInvalidInput, "{}.{}: expected [token, id]", where, key);
  return checked_id(pair[1], vocabulary, where);
}

SpecialFrame parse_template(const Json& json, int64_t vocabulary, std::string_view where) {
  const auto specials = json.find("special_tokens");
  SpecialFrame frame;
  bool seen_text = false;
  for (const Json& part : required_array(json, "single", where)) {
    if (!part.is_object() || part.size() != 1 || !part.begin()->is_object()) {
      throw_error(ErrorKind::kInvalidInput, "{}.single: expected SpecialToken or Sequence objects", where);
    }
    if (part.begin().key() == "Sequence") {
      if (seen_text) throw_error(ErrorKind::kUnsupported, "{}.single: the text comes twice", where);
      seen_text = true;
      continue;
    }
    if (part.begin().key() != "SpecialToken") {
      throw_error(ErrorKind::kUnsupported, "{}.single: {}", where, quote_text(part.begin().key()));
    }
    const std::string& name = required_string(*part.begin(), "id", where);
    if (specials == json.end() || !specials->is_object() || !specials->contains(name)) {
      throw_error(ErrorKind::kInvalidInput, "{}.special_tokens: {} is missing", where, quote_text(name));
    }
    const Json& entry = (*specials)[name];
    if (!entry.is_object())
      throw_error(ErrorKind::kInvalidInput, "{}.special_tokens: expected objects", where);
    for (const Json& id : required_array(entry, "ids", where)) {
      (seen_text ? frame.after : frame.before).push_back(checked_id(id, vocabulary, where));
    }
  }
  return frame;
}

}  // namespace

SpecialFrame parse_post_processor(const Json& json, int64_t vocabulary, std::string_view where, int depth) {
  if (json.is_null()) return {};
  if (depth > kMaxNesting)
    throw_error(ErrorKind::kUnsupported, "{}: nested deeper than {}", where, kMaxNesting);
  const std::string& type = type_field(json, where);
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return parse_template(json, vocabulary, where);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return {{pair_id(json, "cls", vocabulary, where)}, {pair_id(json, "sep", vocabulary, where)}};
  }
  if (type == "Sequence") {
    SpecialFrame frame;
    for (const Json& part : required_array(json, "processors", where)) {
      const SpecialFrame outer = parse_post_processor(part, vocabulary, where, depth + 1);
      frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
      frame.after.insert(frame.after.end(), outer.after.begin(), outer.after.end());
    }
    return frame;
  }
  throw_error(ErrorKind::kUnsupported, "{}: post-processor {} is not supported", where, quote_text(type));
}

}  // namespace qiao::tokenization
