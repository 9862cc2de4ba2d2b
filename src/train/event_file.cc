#include "train/event_file.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cstdio>

#include <fmt/format.h>

namespace qiao::train {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82f63b78u : 0);
    table[i] = value;
  }
  return table;
}();

uint32_t masked_crc32c(std::string_view data) {
  uint32_t crc = ~0u;
  for (const char c : data) crc = kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ (crc >> 8);
  crc = ~crc;
  return std::rotr(crc, 15) + 0xa282ead8u;
}

template <typename T>
void add_little_endian(std::string& bytes, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
}

void add_varint(std::string& bytes, uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
}

// Fields of a protocol buffer: number and wire type, then the value.
void add_integer(std::string& message, int field, int64_t value) {
  add_varint(message, static_cast<uint64_t>(field) << 3);
  add_varint(message, static_cast<uint64_t>(value));
}
void add_double(std::string& message, int field, double value) {
  add_varint(message, static_cast<uint64_t>(field) << 3 | 1);
  add_little_endian(message, std::bit_cast<uint64_t>(value));
}
void add_float(std::string& message, int field, float value) {
  add_varint(message, static_cast<uint64_t>(field) << 3 | 5);
  add_little_endian(message, std::bit_cast<uint32_t>(value));
}
void add_bytes(std::string& message, int field, std::string_view value) {
  add_varint(message, static_cast<uint64_t>(field) << 3 | 2);
  add_varint(message, value.size());
  message.append(value);
}

std::string event(double wall_time, int64_t step) {
  std::string message;
  add_double(message, 1, wall_time);
  if (step != 0) add_integer(message, 2, step);
  return message;
}

}  // namespace

std::string version_event(double wall_time) {
  std::string message = event(wall_time, 0);
  add_bytes(message, 3, "brain.Event:2");
  return message;
}

std::string start_event(double wall_time, int64_t step) {
  std::string message = event(wall_time, step), session;
  add_integer(session, 1, 1);  // START
  add_bytes(message, 7, session);
  return message;
}

std::string scalars_event(double wall_time, int64_t step, std::span<const Scalar> scalars) {
  std::string message = event(wall_time, step), summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    add_bytes(entry, 1, tag);
    add_float(entry, 2, static_cast<float>(value));
    add_bytes(summary, 1, entry);
  }
  add_bytes(message, 5, summary);
  return message;
}

std::string text_event(double wall_time, int64_t step, std::string_view tag, std::string_view text) {
  std::string message = event(wall_time, step), summary, entry, plugin, metadata, tensor, shape, dimension;
  add_bytes(plugin, 1, "text");
  add_bytes(metadata, 1, plugin);
  add_integer(dimension, 1, 1);
  add_bytes(shape, 2, dimension);
  add_integer(tensor, 1, 7);  // DT_STRING
  add_bytes(tensor, 2, shape);
  add_bytes(tensor, 8, text);
  add_bytes(entry, 1, tag);
  add_bytes(entry, 8, tensor);
  add_bytes(entry, 9, metadata);
  add_bytes(summary, 1, entry);
  add_bytes(message, 5, summary);
  return message;
}

std::string tf_record(std::string_view data) {
  std::string record;
  add_little_endian(record, static_cast<uint64_t>(data.size()));
  add_little_endian(record, masked_crc32c(record));
  record.append(data);
  add_little_endian(record, masked_crc32c(data));
  return record;
}

std::string event_file_name(double wall_time) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  return fmt::format("events.out.tfevents.{:010}.{}.{}.0", static_cast<int64_t>(wall_time), host.data(),
                     ::getpid());
}

}  // namespace qiao::train
