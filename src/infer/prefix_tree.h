// The pages of earlier prompts and answers, found by their tokens: a tree whose nodes are full pages, each
// below the page that precedes it, one root a tenant. A page depends on every token before it, so a path from
// the root is the only name it has. Only whole prefixes are shared. Shared pages are full and never written
// again: nothing is copied.
// Beside its full page (of the layers that see all tokens) a node has a sliding page (of those with a window)
// for as long as there is room. These go on their own, from any node: a prefix can be continued where the
// window that ends there is still whole.
// As in RadixAttention (Zheng et al. 2023, SGLang), with edges of one page. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/page_pool.h"
#include "text/tokenizer.h"

namespace qiao {

class PrefixTree {
 public:
  explicit PrefixTree(PagePools& pools);
  ~PrefixTree();

  struct Match {
    // What follows the known pages, each with a reference for the caller: full pages, and as many entries
    // of the sliding table, of which only those in the window that ends there are pages.
    PageTables pages;
    int64_t reach = 0;  // so many full pages of the tokens are in the tree, windows aside
  };
  // `known` are the full pages of tokens' first tokens, and all in the tree with the window that ends there.
  // Finds the longest prefix, as far as tokens fill pages, from which one can go on.
  Match match(std::string_view tenant, std::span<const TokenId> tokens, std::span<const int32_t> known = {});

  // The first tokens.size() / page_tokens pages hold these tokens, and the first `known` are in the tree.
  // Adds the others, each with a reference of the tree's own. Where the tree already has a page of the same
  // tokens, that one takes the place of the caller's (with its reference).
  void insert(std::string_view tenant, std::span<const TokenId> tokens, PageTables& pages, int64_t known);

  // Drops the caller's references to the pages of a sequence, in the tree or not; those in the tree become
  // the most recently used.
  void release(const PageTables& pages);
  // Drops the caller's reference to a sliding page that its window has left. In the tree it becomes the most
  // recently used, or, where it is not `worth` keeping, the first to be evicted.
  void leave(int32_t sliding_page, bool worth);

  // Frees the least recently used full page that only the tree refers to and that no page follows, and the
  // sliding page beside it. False: none.
  bool evict();
  // Frees the least recently used sliding page that only the tree refers to. False: none.
  bool evict_sliding();
  // Evicts all that nobody uses.
  void clear();

  // For saving and restoring. Pages of the tree, and where in the list the page that each follows is (-1: it
  // is the first of a prompt). Views hold until the tree changes.
  struct Entry {
    int32_t page;
    int64_t parent;
    std::string_view tenant;
    std::span<const TokenId> tokens;
  };
  struct SlidingEntry {
    int32_t page;
    int64_t beside;  // where in the list of full pages its node's is
  };
  struct Contents {
    std::vector<Entry> pages;  // the most recently used first, but each behind the one that it follows
    std::vector<SlidingEntry> sliding;  // the most recently used first
  };
  // As many as most_bytes hold, where a full page takes so many bytes and a sliding page so many.
  Contents newest(uint64_t most_bytes, uint64_t page_bytes, uint64_t sliding_bytes) const;
  // Adds a page of page_tokens tokens behind `parent_page` (-1: the first of a prompt), which is the
  // tenant's. The caller keeps its reference. False, and nothing changed, where there is a page of these
  // tokens.
  bool add(std::string_view tenant, int32_t parent_page, std::span<const TokenId> tokens, int32_t page);
  // Puts a sliding page beside full page `page`, in the same way. False where there is one.
  bool add_sliding(int32_t page, int32_t sliding_page);

 private:
  struct Node;
  // Keys are views of the children's own tokens; ordered, so that no choice of tokens makes it slow.
  struct Less {
    bool operator()(std::span<const TokenId> a, std::span<const TokenId> b) const;
  };
  using Children = std::map<std::span<const TokenId>, std::unique_ptr<Node>, Less>;
  struct Root;
  // What there is of one group of layers: nodes with such a page, by page (null: not in the tree) and by
  // their last use.
  struct Group {
    PagePool& pool;
    const size_t index;  // in what a node has of each group
    std::vector<Node*> nodes = std::vector<Node*>(static_cast<size_t>(pool.total()));
    Node *oldest = nullptr, *newest = nullptr;

    void put(Node& node, int32_t page);  // the page gets a reference of the tree's own
    void drop(Node& node);
    void unlink(Node& node);
    void touch(Node& node);  // in the list or not yet: makes it the most recently used
    void put_last(Node& node);
    Node& oldest_idle();
    void release(std::span<const int32_t> pages);
  };

  Root& root(std::string_view tenant);
  Children* children_after(std::string_view tenant, Node* node);
  std::span<const TokenId> tokens_of(std::span<const TokenId> tokens, size_t page) const;
  int64_t sliding_pages_up_to(const Node* node) const;
  Node& grow(Root& top, Node* parent, std::span<const TokenId> tokens, int32_t page);

  PagePools& pools_;
  std::map<std::string, std::unique_ptr<Root>, std::less<>> roots_;
  // Among the full pages that nobody uses, a node lies behind the nodes below it: the first is a leaf.
  Group full_, sliding_;
};

}  // namespace qiao
