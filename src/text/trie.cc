#include "text/trie.h"

#include "base/error.h"

namespace qiao::tokenization {

void Trie::insert(std::string_view key, TokenId value) {
  if (key.empty()) return;
  uint32_t node = kRoot;
  for (const char c : key) {
    const uint64_t edge = (uint64_t{node} << 8) | static_cast<unsigned char>(c);
    if (values_.size() * 2 > slots_.size()) grow();
    const size_t mask = slots_.size() - 1;
    size_t i = mix(edge) & mask;
    while (slots_[i].node != kNone && slots_[i].edge != edge) i = (i + 1) & mask;
    if (slots_[i].node == kNone) {
      if (values_.size() >= kMaxNodes) {
        throw_error(ErrorKind::kTooLarge, "tokenizer: the vocabulary's trie is over {} nodes", kMaxNodes);
      }
      slots_[i] = {edge, static_cast<uint32_t>(values_.size())};
      values_.push_back(-1);
    }
    node = slots_[i].node;
  }
  values_[node] = value;
}

uint32_t Trie::child(uint32_t node, unsigned char byte) const {
  const uint64_t edge = (uint64_t{node} << 8) | byte;
  const size_t mask = slots_.size() - 1;
  for (size_t i = mix(edge) & mask;; i = (i + 1) & mask) {
    if (slots_[i].node == kNone || slots_[i].edge == edge) return slots_[i].node;
  }
}

size_t Trie::longest_prefix(std::string_view text, TokenId* value) const {
  size_t longest = 0;
  uint32_t node = kRoot;
  for (size_t i = 0; i < text.size(); ++i) {
    node = child(node, static_cast<unsigned char>(text[i]));
    if (node == kNone) break;
    if (values_[node] >= 0) {
      longest = i + 1;
      *value = values_[node];
    }
  }
  return longest;
}

void Trie::grow() {
  std::vector<Slot> old(slots_.size() * 2);
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.node == kNone) continue;
    size_t i = mix(slot.edge) & mask;
    while (slots_[i].node != kNone) i = (i + 1) & mask;
    slots_[i] = slot;
  }
}

}  // namespace qiao::tokenization
