#include "infer/prefix_tree.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"

namespace qiao {

struct PrefixTree::Root {
  std::string tenant;
  Children children;
};

struct PrefixTree::Node {
  std::vector<TokenId> tokens;  // page_tokens of them
  int32_t page = 0;
  Node* parent = nullptr;  // null: the root
  Root* root = nullptr;
  Children children;
  Node *older = nullptr, *newer = nullptr;
};

bool PrefixTree::Less::operator()(std::span<const TokenId> a, std::span<const TokenId> b) const {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

PrefixTree::PrefixTree(PagePool& pool, int64_t page_tokens)
    : pool_(pool), page_tokens_(page_tokens), nodes_(static_cast<size_t>(pool.total())) {}

PrefixTree::~PrefixTree() {
  // Children before parents: a chain of nodes destroyed from its root would recurse to its depth.
  while (newest_ != nullptr) {
    Node* node = newest_;
    while (!node->children.empty()) node = node->children.begin()->second.get();
    unlink(*node);
    Children& siblings = node->parent != nullptr ? node->parent->children : node->root->children;
    siblings.erase(siblings.find(node->tokens));
  }
}

PrefixTree::Root& PrefixTree::root(std::string_view tenant) {
  auto found = roots_.find(tenant);
  if (found == roots_.end()) {
    found = roots_.emplace(std::string(tenant), std::make_unique<Root>()).first;
    found->second->tenant = found->first;
  }
  return *found->second;
}

// Null where the tenant has no pages at all.
PrefixTree::Children* PrefixTree::children_after(std::string_view tenant, std::span<const int32_t> pages) {
  if (!pages.empty()) {
    Node* const last = nodes_[static_cast<size_t>(pages.back())];
    QIAO_ASSERT(last != nullptr);
    return &last->children;
  }
  const auto found = roots_.find(tenant);
  return found == roots_.end() ? nullptr : &found->second->children;
}

std::span<const TokenId> PrefixTree::tokens_of(std::span<const TokenId> tokens, size_t page) const {
  const auto size = static_cast<size_t>(page_tokens_);
  return tokens.subspan(page * size, size);
}

void PrefixTree::match(std::string_view tenant, std::span<const TokenId> tokens,
                       std::vector<int32_t>& pages) {
  Children* children = children_after(tenant, pages);
  const size_t full = tokens.size() / static_cast<size_t>(page_tokens_);
  while (children != nullptr && pages.size() < full) {
    const auto found = children->find(tokens_of(tokens, pages.size()));
    if (found == children->end()) return;
    pool_.ref(found->second->page);
    pages.push_back(found->second->page);
    children = &found->second->children;
  }
}

void PrefixTree::insert(std::string_view tenant, std::span<const TokenId> tokens, std::span<int32_t> pages,
                        int64_t known) {
  QIAO_ASSERT(tokens.size() >= pages.size() * static_cast<size_t>(page_tokens_));
  auto at = static_cast<size_t>(known);
  if (at >= pages.size()) return;
  Node* parent = at == 0 ? nullptr : nodes_[static_cast<size_t>(pages[at - 1])];
  QIAO_ASSERT(at == 0 || parent != nullptr);
  Root& top = parent == nullptr ? root(tenant) : *parent->root;
  for (; at < pages.size(); ++at) {
    Children& children = parent == nullptr ? top.children : parent->children;
    const std::span<const TokenId> key = tokens_of(tokens, at);
    if (const auto found = children.find(key); found != children.end()) {
      parent = found->second.get();
      pool_.ref(parent->page);
      pool_.unref(std::exchange(pages[at], parent->page));
      continue;
    }
    parent = &grow(top, parent, key, pages[at]);
  }
}

// A node more, the most recently used, with a reference of its own. Required: there is none of these tokens.
PrefixTree::Node& PrefixTree::grow(Root& top, Node* parent, std::span<const TokenId> tokens, int32_t page) {
  auto node = std::make_unique<Node>();
  node->tokens.assign(tokens.begin(), tokens.end());
  node->page = page;
  node->parent = parent;
  node->root = &top;
  pool_.ref(page);
  pool_.set_cached(page, true);
  nodes_[static_cast<size_t>(page)] = node.get();
  touch(*node);
  Node& grown = *node;
  (parent == nullptr ? top.children : parent->children).emplace(grown.tokens, std::move(node));
  return grown;
}

bool PrefixTree::add(std::string_view tenant, int32_t parent_page, std::span<const TokenId> tokens,
                     int32_t page) {
  QIAO_ASSERT(std::ssize(tokens) == page_tokens_);
  Node* const parent = parent_page < 0 ? nullptr : nodes_[static_cast<size_t>(parent_page)];
  QIAO_ASSERT(parent_page < 0 || parent != nullptr);
  Root& top = parent == nullptr ? root(tenant) : *parent->root;
  if ((parent == nullptr ? top.children : parent->children).contains(tokens)) return false;
  grow(top, parent, tokens, page);
  return true;
}

std::vector<PrefixTree::Entry> PrefixTree::newest(size_t most) const {
  std::vector<Entry> entries;
  std::unordered_map<const Node*, int64_t> index;
  std::vector<const Node*> path;
  for (const Node* last = newest_; last != nullptr; last = last->older) {
    path.clear();
    for (const Node* node = last; node != nullptr && !index.contains(node); node = node->parent)
      path.push_back(node);
    if (entries.size() + path.size() > most) return entries;
    for (; !path.empty(); path.pop_back()) {  // from the root
      const Node* const node = path.back();
      index.emplace(node, std::ssize(entries));
      const int64_t parent = node->parent == nullptr ? -1 : index.at(node->parent);
      entries.push_back({node->page, parent, node->root->tenant, node->tokens});
    }
  }
  return entries;
}

void PrefixTree::unlink(Node& node) {
  (node.older != nullptr ? node.older->newer : oldest_) = node.newer;
  (node.newer != nullptr ? node.newer->older : newest_) = node.older;
  node.older = node.newer = nullptr;
}

// Makes the node, in the list or not yet, the most recently used.
void PrefixTree::touch(Node& node) {
  if (newest_ == &node) return;
  if (node.newer != nullptr) unlink(node);
  node.older = newest_;
  (newest_ != nullptr ? newest_->newer : oldest_) = &node;
  newest_ = &node;
}

void PrefixTree::release(std::span<const int32_t> pages) {
  for (size_t i = pages.size(); i-- > 0;) {  // from the leaf: whoever uses a page uses those before it
    pool_.unref(pages[i]);
    if (Node* const node = nodes_[static_cast<size_t>(pages[i])]) touch(*node);
  }
}

bool PrefixTree::evict() {
  if (pool_.idle() == 0) return false;
  // Pages in use are passed by once each: they are recent by that very fact.
  while (pool_.refs(oldest_->page) > 1) touch(*oldest_);
  Node& node = *oldest_;
  QIAO_ASSERT(node.children.empty());
  unlink(node);
  nodes_[static_cast<size_t>(node.page)] = nullptr;
  pool_.set_cached(node.page, false);
  pool_.unref(node.page);
  Root& top = *node.root;
  Children& siblings = node.parent != nullptr ? node.parent->children : top.children;
  siblings.erase(siblings.find(node.tokens));  // and with it `node`
  if (top.children.empty()) roots_.erase(roots_.find(top.tenant));
  return true;
}

void PrefixTree::clear() {
  while (evict()) {
  }
}

}  // namespace qiao
