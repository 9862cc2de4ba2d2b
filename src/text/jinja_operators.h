// Python's operators over values. A wrong use throws Error(kInvalidInput) with Python's message.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "text/jinja_value.h"

namespace qiao::jinja {

bool truth(const Value& value);
bool equals(const Value& a, const Value& b);
bool identical(const Value& a, const Value& b);  // Python's "is"
// a < b and a <= b, as Python orders: numbers, strings, lists and tuples.
bool less(const Value& a, const Value& b);
bool less_or_equal(const Value& a, const Value& b);
size_t hash_of(const Value& value);
size_t hash_of_text(std::string_view text);
bool contains(Interpreter& interpreter, const Value& container, const Value& item);

Value add(const Value& a, const Value& b);
Value subtract(const Value& a, const Value& b);
Value multiply(const Value& a, const Value& b);
Value divide(const Value& a, const Value& b);
Value floor_divide(const Value& a, const Value& b);
Value modulo(const Value& a, const Value& b);
Value power(const Value& a, const Value& b);
Value negate(const Value& a);
Value positive(const Value& a);

// len(); nothing for what has none.
std::optional<int64_t> length_of(const Value& value);
int64_t require_length(const Value& value);

// value[start:stop:step]; none where absent.
Value slice(const Value& value, const Value& start, const Value& stop, const Value& step);
// list[index], text[index]… negative from the end; missing past the ends.
Value element_at(const Value& value, int64_t index);

// What `for` walks over; the iterator itself for an iterator.
Ref<Iterator> iterate(const Value& value);
bool is_iterable(const Value& value);
std::vector<Value> to_vector(Interpreter& interpreter, const Value& iterable);

// str(value) and repr(value), appended.
void append_text(std::string& out, const Value& value);
void append_repr(std::string& out, const Value& value);
std::string to_text(const Value& value);
std::string to_repr(const Value& value);
std::string float_repr(double value);
std::string quoted(std::string_view text);  // repr of a string

// HTML escaping as markupsafe does; the text of markup as it is.
std::string escape_html(const Value& value);

// An integer that an operation needs ("slice indices", "width"): ints and bools; throws for others.
int64_t require_integer(const Value& value, std::string_view what);
[[noreturn]] void fail_overflow();

}  // namespace qiao::jinja
