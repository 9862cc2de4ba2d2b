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
  Node* parent = nullptr;       // null: the root
  Root* root = nullptr;
  Children children;
  struct Place {
    int32_t page = kNoPage;
    Node *older = nullptr, *newer = nullptr;
  };
  Place places[2];  // by group
  int32_t page() const { return places[0].page; }
  int32_t sliding_page() const { return places[1].page; }
};

bool PrefixTree::Less::operator()(std::span<const TokenId> a, std::span<const TokenId> b) const {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

void PrefixTree::Group::put(Node& node, int32_t page) {
  pool.ref(page);
  pool.set_cached(page, true);
  nodes[static_cast<size_t>(page)] = &node;
  node.places[index].page = page;
  touch(node);
}

void PrefixTree::Group::drop(Node& node) {
  unlink(node);
  const int32_t page = std::exchange(node.places[index].page, kNoPage);
  nodes[static_cast<size_t>(page)] = nullptr;
  pool.set_cached(page, false);
  pool.unref(page);
}

void PrefixTree::Group::unlink(Node& node) {
  auto& [page, older, newer] = node.places[index];
  (older != nullptr ? older->places[index].newer : oldest) = newer;
  (newer != nullptr ? newer->places[index].older : newest) = older;
  older = newer = nullptr;
}

void PrefixTree::Group::touch(Node& node) {
  if (newest == &node) return;
  Node::Place& place = node.places[index];
  if (place.newer != nullptr) unlink(node);
  place.older = newest;
  (newest != nullptr ? newest->places[index].newer : oldest) = &node;
  newest = &node;
}

// Makes the node, which is in the list, the least recently used.
void PrefixTree::Group::put_last(Node& node) {
  if (oldest == &node) return;
  unlink(node);
  node.places[index].newer = oldest;
  oldest->places[index].older = &node;
  oldest = &node;
}

// The least recently used that only the tree refers to. Required: there is one.
PrefixTree::Node& PrefixTree::Group::oldest_idle() {
  // Pages in use are passed by once each: they are recent by that very fact.
  while (pool.refs(oldest->places[index].page) > 1) touch(*oldest);
  return *oldest;
}

void PrefixTree::Group::release(std::span<const int32_t> pages) {
  for (size_t i = pages.size(); i-- > 0;) {  // from the leaf: whoever uses a page uses those before it
    if (pages[i] == kNoPage) continue;
    pool.unref(pages[i]);
    if (Node* const node = nodes[static_cast<size_t>(pages[i])]) touch(*node);
  }
}

PrefixTree::PrefixTree(PagePools& pools)
    : pools_(pools), full_{.pool = pools.full, .index = 0}, sliding_{.pool = pools.sliding, .index = 1} {}

PrefixTree::~PrefixTree() {
  // Children before parents: a chain of nodes destroyed from its root would recurse to its depth.
  while (full_.newest != nullptr) {
    Node* node = full_.newest;
    while (!node->children.empty()) node = node->children.begin()->second.get();
    full_.unlink(*node);
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
PrefixTree::Children* PrefixTree::children_after(std::string_view tenant, Node* node) {
  if (node != nullptr) return &node->children;
  const auto found = roots_.find(tenant);
  return found == roots_.end() ? nullptr : &found->second->children;
}

std::span<const TokenId> PrefixTree::tokens_of(std::span<const TokenId> tokens, size_t page) const {
  const auto size = static_cast<size_t>(pools_.page_tokens);
  return tokens.subspan(page * size, size);
}

// How many nodes without a gap, up to this one, have sliding pages; no more are counted than a window needs.
int64_t PrefixTree::sliding_pages_up_to(const Node* node) const {
  const int64_t enough = pools_.pages_for(pools_.window) + 1;
  int64_t count = 0;
  for (; node != nullptr && node->sliding_page() != kNoPage && count < enough; node = node->parent) ++count;
  return count;
}

PrefixTree::Match PrefixTree::match(std::string_view tenant, std::span<const TokenId> tokens,
                                    std::span<const int32_t> known) {
  Node* node = known.empty() ? nullptr : full_.nodes[static_cast<size_t>(known.back())];
  QIAO_ASSERT(known.empty() || node != nullptr);
  const bool slides = pools_.slides();
  const int64_t from = std::ssize(known), most = std::ssize(tokens) / pools_.page_tokens;
  int64_t at = from, whole = from;
  int64_t neighbours = slides ? sliding_pages_up_to(node) : 0;
  std::vector<Node*> path;
  for (Children* children = children_after(tenant, node); children != nullptr && at < most;) {
    const auto found = children->find(tokens_of(tokens, static_cast<size_t>(at)));
    if (found == children->end()) break;
    node = found->second.get();
    path.push_back(node);
    children = &node->children;
    ++at;
    neighbours = node->sliding_page() != kNoPage ? neighbours + 1 : 0;
    if (!slides || neighbours >= at - pools_.window_start(at)) whole = at;
  }
  Match match;
  match.reach = at;
  const int64_t window_start = slides ? pools_.window_start(whole) : 0;
  for (int64_t i = from; i < whole; ++i) {
    const Node& taken = *path[static_cast<size_t>(i - from)];
    pools_.full.ref(taken.page());
    match.pages.full.push_back(taken.page());
    if (!slides) continue;
    const bool seen = i >= window_start;
    if (seen) pools_.sliding.ref(taken.sliding_page());
    match.pages.sliding.push_back(seen ? taken.sliding_page() : kNoPage);
  }
  return match;
}

void PrefixTree::insert(std::string_view tenant, std::span<const TokenId> tokens, PageTables& pages,
                        int64_t known) {
  auto at = static_cast<size_t>(known);
  const size_t end = tokens.size() / static_cast<size_t>(pools_.page_tokens);
  QIAO_ASSERT(end <= pages.full.size());
  if (at >= end) return;
  Node* node = at == 0 ? nullptr : full_.nodes[static_cast<size_t>(pages.full[at - 1])];
  QIAO_ASSERT(at == 0 || node != nullptr);
  Root& top = node == nullptr ? root(tenant) : *node->root;
  for (; at < end; ++at) {
    Children& children = node == nullptr ? top.children : node->children;
    const std::span<const TokenId> key = tokens_of(tokens, at);
    if (const auto found = children.find(key); found != children.end()) {
      node = found->second.get();
      pools_.full.ref(node->page());
      pools_.full.unref(std::exchange(pages.full[at], node->page()));
    } else {
      node = &grow(top, node, key, pages.full[at]);
    }
    if (at >= pages.sliding.size() || pages.sliding[at] == kNoPage) continue;
    if (node->sliding_page() == kNoPage) {
      sliding_.put(*node, pages.sliding[at]);
    } else {
      pools_.sliding.ref(node->sliding_page());
      pools_.sliding.unref(std::exchange(pages.sliding[at], node->sliding_page()));
    }
  }
}

// A node more, the most recently used. Required: there is none of these tokens.
PrefixTree::Node& PrefixTree::grow(Root& top, Node* parent, std::span<const TokenId> tokens, int32_t page) {
  auto node = std::make_unique<Node>();
  node->tokens.assign(tokens.begin(), tokens.end());
  node->parent = parent;
  node->root = &top;
  full_.put(*node, page);
  Node& grown = *node;
  (parent == nullptr ? top.children : parent->children).emplace(grown.tokens, std::move(node));
  return grown;
}

bool PrefixTree::add(std::string_view tenant, int32_t parent_page, std::span<const TokenId> tokens,
                     int32_t page) {
  QIAO_ASSERT(std::ssize(tokens) == pools_.page_tokens);
  Node* const parent = parent_page < 0 ? nullptr : full_.nodes[static_cast<size_t>(parent_page)];
  QIAO_ASSERT(parent_page < 0 || parent != nullptr);
  Root& top = parent == nullptr ? root(tenant) : *parent->root;
  if ((parent == nullptr ? top.children : parent->children).contains(tokens)) return false;
  grow(top, parent, tokens, page);
  return true;
}

bool PrefixTree::add_sliding(int32_t page, int32_t sliding_page) {
  Node* const node = full_.nodes[static_cast<size_t>(page)];
  QIAO_ASSERT(node != nullptr);
  if (node->sliding_page() != kNoPage) return false;
  sliding_.put(*node, sliding_page);
  return true;
}

PrefixTree::Contents PrefixTree::newest(uint64_t most_bytes, uint64_t page_bytes,
                                        uint64_t sliding_bytes) const {
  Contents contents;
  std::unordered_map<const Node*, int64_t> index;
  std::vector<const Node*> path;
  uint64_t bytes = 0;
  for (const Node* last = full_.newest; last != nullptr; last = last->places[0].older) {
    path.clear();
    for (const Node* node = last; node != nullptr && !index.contains(node); node = node->parent) {
      path.push_back(node);
      bytes += page_bytes + (node->sliding_page() != kNoPage ? sliding_bytes : 0);
    }
    if (bytes > most_bytes) break;
    for (; !path.empty(); path.pop_back()) {  // from the root
      const Node* const node = path.back();
      index.emplace(node, std::ssize(contents.pages));
      const int64_t parent = node->parent == nullptr ? -1 : index.at(node->parent);
      contents.pages.push_back({node->page(), parent, node->root->tenant, node->tokens});
    }
  }
  for (const Node* node = sliding_.newest; node != nullptr; node = node->places[1].older) {
    if (const auto found = index.find(node); found != index.end())
      contents.sliding.push_back({node->sliding_page(), found->second});
  }
  return contents;
}

void PrefixTree::release(const PageTables& pages) {
  full_.release(pages.full);
  sliding_.release(pages.sliding);
}

void PrefixTree::leave(int32_t sliding_page, bool worth) {
  pools_.sliding.unref(sliding_page);
  Node* const node = sliding_.nodes[static_cast<size_t>(sliding_page)];
  if (node == nullptr) return;
  worth ? sliding_.touch(*node) : sliding_.put_last(*node);
}

bool PrefixTree::evict() {
  if (pools_.full.idle() == 0) return false;
  Node& node = full_.oldest_idle();
  QIAO_ASSERT(node.children.empty());
  if (node.sliding_page() != kNoPage) sliding_.drop(node);
  full_.drop(node);
  Root& top = *node.root;
  Children& siblings = node.parent != nullptr ? node.parent->children : top.children;
  siblings.erase(siblings.find(node.tokens));  // and with it `node`
  if (top.children.empty()) roots_.erase(roots_.find(top.tenant));
  return true;
}

bool PrefixTree::evict_sliding() {
  if (pools_.sliding.idle() == 0) return false;
  sliding_.drop(sliding_.oldest_idle());
  return true;
}

void PrefixTree::clear() {
  while (evict()) {
  }
}

}  // namespace qiao
