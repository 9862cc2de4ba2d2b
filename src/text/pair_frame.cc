#include "text/pair_frame.h"

#include <algorithm>

#include "base/error.h"

namespace qiao {
namespace {

using PairItem = PairFrame::Item;

constexpr size_t kMaxPairItems = 64;

[[noreturn]] void refuse_pair(std::string_view where, std::string_view what) {
  throw_error(ErrorKind::kInvalidInput, "{}: post_processor: {}", where, what);
}

const Json& member(const Json& json, const char* key, std::string_view where) {
  const auto found = json.is_object() ? json.find(key) : json.end();
  if (!json.is_object() || found == json.end()) refuse_pair(where, fmt::format("{} is missing", key));
  return *found;
}

TokenId pair_token(const Json& id, int64_t vocabulary, std::string_view where) {
  if (!id.is_number_integer() || id < 0 || id >= vocabulary)
    refuse_pair(where, fmt::format("{} is not a token's id", dump_json(id).substr(0, 40)));
  return id.get<TokenId>();
}

int32_t segment_type(const Json& entry, std::string_view where) {
  const Json& type = member(entry, "type_id", where);
  if (!type.is_number_integer() || type < 0 || type > 63) refuse_pair(where, "type_id is not from 0 to 63");
  return type.get<int32_t>();
}

void add_template(const Json& processor, int64_t vocabulary, std::string_view where,
                  std::vector<PairItem>& items) {
  const Json& pair = member(processor, "pair", where);
  if (!pair.is_array() || pair.size() > kMaxPairItems) refuse_pair(where, "pair is not a short list");
  for (const Json& piece : pair) {
    if (!piece.is_object() || piece.size() != 1) refuse_pair(where, "pair holds more than pieces");
    const Json& entry = piece.begin().value();
    const Json& name = member(entry, "id", where);
    if (!name.is_string()) refuse_pair(where, "a piece's id is not a string");
    const int32_t type = segment_type(entry, where);
    if (piece.contains("Sequence")) {
      items.push_back({name == "A" ? PairItem::Kind::kFirst : PairItem::Kind::kSecond, 0, type});
      continue;
    }
    const Json& special =
        member(member(processor, "special_tokens", where), name.get<std::string>().c_str(), where);
    const Json& ids = member(special, "ids", where);
    if (!ids.is_array() || ids.size() > kMaxPairItems) refuse_pair(where, "ids are not a short list");
    for (const Json& id : ids)
      items.push_back({PairItem::Kind::kSpecial, pair_token(id, vocabulary, where), type});
  }
}

// {"sep": ["[SEP]", 102], "cls": ["[CLS]", 101]}
void add_classic(const Json& processor, bool roberta, int64_t vocabulary, std::string_view where,
                 std::vector<PairItem>& items) {
  const auto token = [&](const char* key) {
    const Json& entry = member(processor, key, where);
    if (!entry.is_array() || entry.size() != 2) refuse_pair(where, fmt::format("{} is not a token", key));
    return pair_token(entry[1], vocabulary, where);
  };
  const TokenId cls = token("cls"), sep = token("sep");
  const int32_t second = roberta ? 0 : 1;
  items = {
      {PairItem::Kind::kSpecial, cls, 0}, {PairItem::Kind::kFirst, 0, 0}, {PairItem::Kind::kSpecial, sep, 0}};
  if (roberta) items.push_back({PairItem::Kind::kSpecial, sep, 0});
  items.push_back({PairItem::Kind::kSecond, 0, second});
  items.push_back({PairItem::Kind::kSpecial, sep, second});
}

bool add_pair(const Json& processor, int64_t vocabulary, std::string_view where,
              std::vector<PairItem>& items) {
  if (!processor.is_object()) return false;
  const auto kind = processor.find("type");
  if (kind == processor.end()) return false;
  if (*kind == "TemplateProcessing") {
    add_template(processor, vocabulary, where, items);
  } else if (*kind == "BertProcessing" || *kind == "RobertaProcessing") {
    add_classic(processor, *kind == "RobertaProcessing", vocabulary, where, items);
  } else if (*kind == "Sequence") {
    const Json& inner = member(processor, "processors", where);
    if (!inner.is_array() || inner.size() > kMaxPairItems) refuse_pair(where, "processors are no short list");
    for (const Json& one : inner) {
      // Not deeper: a Sequence inside a Sequence says nothing here.
      if (one.is_object() && one.value("type", "") != "Sequence" && add_pair(one, vocabulary, where, items))
        return true;
    }
    return false;
  } else {
    return false;
  }
  return true;
}

}  // namespace

int64_t PairFrame::special_tokens() const {
  return std::count_if(items.begin(), items.end(),
                       [](const Item& item) { return item.kind == Item::Kind::kSpecial; });
}

PairFrame::Encoded PairFrame::join(std::vector<TokenId> first, std::vector<TokenId> second,
                                   int64_t max_tokens) const {
  QIAO_ASSERT(max_tokens >= special_tokens());
  const auto room = static_cast<size_t>(max_tokens - special_tokens());
  if (first.size() + second.size() > room) {
    std::vector<TokenId>& shorter = first.size() <= second.size() ? first : second;
    std::vector<TokenId>& longer = first.size() <= second.size() ? second : first;
    if (2 * shorter.size() > room) shorter.resize(room / 2);
    longer.resize(std::min(longer.size(), room - shorter.size()));
  }
  Encoded encoded;
  const auto add = [&](TokenId id, int32_t type) {
    encoded.tokens.push_back(id);
    encoded.types.push_back(type);
  };
  for (const Item& item : items) {
    if (item.kind == Item::Kind::kSpecial) add(item.id, item.type);
    if (item.kind == Item::Kind::kFirst)
      for (const TokenId id : first) add(id, item.type);
    if (item.kind == Item::Kind::kSecond)
      for (const TokenId id : second) add(id, item.type);
  }
  return encoded;
}

PairFrame parse_pair_frame(const Json& post_processor, int64_t vocabulary, std::string_view where) {
  PairFrame frame;
  if (!add_pair(post_processor, vocabulary, where, frame.items)) {
    throw_error(ErrorKind::kUnsupported,
                "{}: post_processor does not say how two texts are put together (TemplateProcessing, "
                "BertProcessing or RobertaProcessing would)",
                where);
  }
  const auto count = [&](PairItem::Kind kind) {
    return std::count_if(frame.items.begin(), frame.items.end(),
                         [&](const PairItem& i) { return i.kind == kind; });
  };
  if (count(PairItem::Kind::kFirst) != 1 || count(PairItem::Kind::kSecond) != 1)
    refuse_pair(where, "a pair is not one A and one B");
  return frame;
}

}  // namespace qiao
