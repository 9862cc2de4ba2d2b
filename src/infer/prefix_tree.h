// The pages of earlier prompts and answers, found by their tokens: a tree whose nodes are full pages, each
// below the page that precedes it, one root a tenant. A page depends on every token before it, so a path from
// the root is the only name it has. Only whole prefixes are shared and every layer keeps all of a sequence's
// pages, so sliding-window layers find what their window needs too. Shared pages are full and never written
// again: nothing is copied.
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
  PrefixTree(PagePool& pool, int64_t page_tokens);
  ~PrefixTree();

  // `pages` are those of `tokens`' first tokens and all in the tree. Appends the pages that follow in the
  // tree, as far as tokens fill them, each with a reference for the caller.
  void match(std::string_view tenant, std::span<const TokenId> tokens, std::vector<int32_t>& pages);

  // pages[i] holds tokens [i * page_tokens, (i + 1) * page_tokens), and tokens fill them all; the first
  // `known` are in the tree. Adds the others, each with a reference of the tree's own. Where the tree already
  // has a page of the same tokens, that one takes the place of the caller's (with its reference).
  void insert(std::string_view tenant, std::span<const TokenId> tokens, std::span<int32_t> pages,
              int64_t known);

  // Drops the caller's references to the pages of a sequence, in the tree or not; those in the tree become
  // the most recently used.
  void release(std::span<const int32_t> pages);

  // Frees the least recently used page that only the tree refers to and that no page follows. False: none.
  bool evict();
  // Evicts all that nobody uses.
  void clear();

  int64_t page_tokens() const { return page_tokens_; }

  // For saving and restoring. A page of the tree, and where in the list the page that it follows is (-1: it
  // is the first of a prompt). Views hold until the tree changes.
  struct Entry {
    int32_t page;
    int64_t parent;
    std::string_view tenant;
    std::span<const TokenId> tokens;
  };
  // At most `most` pages, the most recently used first, but each behind the one that it follows.
  std::vector<Entry> newest(size_t most) const;
  // Adds a page of page_tokens() tokens behind `parent_page` (-1: the first of a prompt), which is the
  // tenant's. The caller keeps its reference. False, and nothing changed, where there is a page of these
  // tokens.
  bool add(std::string_view tenant, int32_t parent_page, std::span<const TokenId> tokens, int32_t page);

 private:
  struct Node;
  // Keys are views of the children's own tokens; ordered, so that no choice of tokens makes it slow.
  struct Less {
    bool operator()(std::span<const TokenId> a, std::span<const TokenId> b) const;
  };
  using Children = std::map<std::span<const TokenId>, std::unique_ptr<Node>, Less>;
  struct Root;

  Root& root(std::string_view tenant);
  Children* children_after(std::string_view tenant, std::span<const int32_t> pages);
  std::span<const TokenId> tokens_of(std::span<const TokenId> tokens, size_t page) const;
  Node& grow(Root& top, Node* parent, std::span<const TokenId> tokens, int32_t page);
  void touch(Node& node);
  void unlink(Node& node);

  PagePool& pool_;
  const int64_t page_tokens_;
  std::map<std::string, std::unique_ptr<Root>, std::less<>> roots_;
  std::vector<Node*> nodes_;  // by page; null: not in the tree
  // All nodes, by their last use. Among those that nobody uses, a node lies behind the nodes below it: the
  // first of them is a leaf.
  Node *oldest_ = nullptr, *newest_ = nullptr;
};

}  // namespace qiao
