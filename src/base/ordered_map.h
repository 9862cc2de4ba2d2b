// The object type of Json: a map that keeps insertion order and finds a key in constant time. nlohmann's own
// ordered_map searches linearly, so a vocabulary of 150,000 keys would take most of a minute to parse, and a
// request of a few megabytes would stop a server.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace qiao {

// Differs from process to process: nobody outside can choose keys that collide.
uint64_t keyed_hash(std::string_view text);

// What nlohmann::basic_json asks of an object type. Keys are strings. Reading is safe from any thread;
// iterators and references end with the next insertion or erasure.
template <class Key, class T, class IgnoredLess = std::less<Key>,
          class Allocator = std::allocator<std::pair<const Key, T>>>
class OrderedMap {
 public:
  using key_type = Key;
  using mapped_type = T;
  // Not `const Key`: a constant key would be copied, and with it the whole value, whenever the entries move.
  using value_type = std::pair<Key, T>;
  using key_compare = std::equal_to<>;
  using allocator_type = typename std::allocator_traits<Allocator>::template rebind_alloc<value_type>;
  using Container = std::vector<value_type, allocator_type>;
  using size_type = typename Container::size_type;
  using difference_type = typename Container::difference_type;
  using reference = value_type&;
  using const_reference = const value_type&;
  using iterator = typename Container::iterator;
  using const_iterator = typename Container::const_iterator;

  OrderedMap() = default;
  template <class Iterator>
  OrderedMap(Iterator first, Iterator last) {
    insert(first, last);
  }
  OrderedMap(std::initializer_list<value_type> entries) : OrderedMap(entries.begin(), entries.end()) {}

  iterator begin() noexcept { return entries_.begin(); }
  iterator end() noexcept { return entries_.end(); }
  const_iterator begin() const noexcept { return entries_.begin(); }
  const_iterator end() const noexcept { return entries_.end(); }
  const_iterator cbegin() const noexcept { return entries_.cbegin(); }
  const_iterator cend() const noexcept { return entries_.cend(); }
  bool empty() const noexcept { return entries_.empty(); }
  size_type size() const noexcept { return entries_.size(); }
  size_type max_size() const noexcept { return entries_.max_size(); }
  void clear() noexcept {
    entries_.clear();
    slots_.clear();
  }

  iterator find(std::string_view key) { return begin() + position(key); }
  const_iterator find(std::string_view key) const { return begin() + position(key); }
  size_type count(std::string_view key) const { return find(key) == end() ? 0 : 1; }
  T& at(std::string_view key) { return const_cast<T&>(std::as_const(*this).at(key)); }
  const T& at(std::string_view key) const {
    const const_iterator found = find(key);
    if (found == end()) throw std::out_of_range("key not found");
    return found->second;
  }

  // Keeps the value of a key that is there already.
  template <class K, class... Values>
  std::pair<iterator, bool> emplace(K&& key, Values&&... values) {
    if (const iterator found = find(key); found != end()) return {found, false};
    entries_.emplace_back(std::piecewise_construct, std::forward_as_tuple(std::forward<K>(key)),
                          std::forward_as_tuple(std::forward<Values>(values)...));
    index_last();
    return {end() - 1, true};
  }
  template <class K>
  T& operator[](K&& key) {
    return emplace(std::forward<K>(key)).first->second;
  }
  std::pair<iterator, bool> insert(const value_type& entry) { return emplace(entry.first, entry.second); }
  std::pair<iterator, bool> insert(value_type&& entry) {
    return emplace(std::move(entry.first), std::move(entry.second));
  }
  template <class Iterator>
  void insert(Iterator first, Iterator last) {
    for (; first != last; ++first) emplace(first->first, first->second);
  }

  // Linear in size().
  iterator erase(const_iterator entry) { return erase(entry, entry + 1); }
  iterator erase(const_iterator first, const_iterator last) {
    const iterator next = entries_.erase(first, last);
    rebuild_index();
    return next;
  }
  size_type erase(std::string_view key) {
    const iterator found = find(key);
    if (found == end()) return 0;
    erase(found);
    return 1;
  }

  friend bool operator==(const OrderedMap& a, const OrderedMap& b) { return a.entries_ == b.entries_; }
  // Objects are equal or not; none is less than another.
  friend std::partial_ordering operator<=>(const OrderedMap& a, const OrderedMap& b) {
    return a == b ? std::partial_ordering::equivalent : std::partial_ordering::unordered;
  }

 private:
  static constexpr size_t kUnindexed = 16;  // so few are searched one by one
  static constexpr uint32_t kFree = ~uint32_t{0};

  difference_type position(std::string_view key) const {
    if (slots_.empty()) {
      const auto found =
          std::find_if(begin(), end(), [&](const value_type& entry) { return entry.first == key; });
      return found - begin();
    }
    const size_t mask = slots_.size() - 1;
    for (size_t slot = keyed_hash(key) & mask; slots_[slot] != kFree; slot = (slot + 1) & mask) {
      if (entries_[slots_[slot]].first == key) return static_cast<difference_type>(slots_[slot]);
    }
    return static_cast<difference_type>(size());
  }

  void index(size_t entry) {
    const size_t mask = slots_.size() - 1;
    size_t slot = keyed_hash(entries_[entry].first) & mask;
    while (slots_[slot] != kFree) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<uint32_t>(entry);
  }

  void index_last() {
    if (size() <= kUnindexed) return;
    if (size() * 2 > slots_.size()) {
      rebuild_index();
    } else {
      index(size() - 1);
    }
  }

  // A power of two of slots, at least half of them free.
  void rebuild_index() {
    slots_.clear();
    if (size() <= kUnindexed) return;
    if (size() >= kFree / 4) throw std::length_error("a JSON object of over a billion keys");
    size_t count = 4 * kUnindexed;
    while (count < size() * 4) count *= 2;
    slots_.assign(count, kFree);
    for (size_t i = 0; i < size(); ++i) index(i);
  }

  Container entries_;
  std::vector<uint32_t>
      slots_;  // positions in entries_, by hash, open addressing; empty while entries are few
};

}  // namespace qiao
