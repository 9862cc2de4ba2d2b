// Copies of golden models with something wrong, and a backend that no wrong model may reach.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "models/model_folder.h"

namespace qiao::testing {

// Refuses every allocation: what is wrong must be found before the first.
class UntouchableBackend final : public Backend {
 public:
  explicit UntouchableBackend(uint64_t free_bytes = uint64_t{1} << 40) : free_bytes_(free_bytes) {}
  std::string_view chip() const override { return "untouchable"; }
  DeviceInfo describe() const override { return {.name = "none", .free_bytes = free_bytes_}; }
  DevicePeaks measure_peaks() override { return {}; }
  void upload(void*, const void*, size_t) override { touched(); }
  void download(void*, const void*, size_t) override { touched(); }
  void synchronize() override { touched(); }

 protected:
  void* do_allocate(size_t) override { return touched(), nullptr; }
  void do_free(void*, size_t) override { touched(); }
  std::unique_ptr<Weight> do_make_weight(const WeightSource&) override { return touched(), nullptr; }
  void do_read_weight(const Weight&, int64_t, size_t, std::byte*) override { touched(); }
  std::unique_ptr<KvPages> do_make_kv_pages(const KvPagesSpec&) override { return touched(), nullptr; }
  void do_export_kv_page(const KvPages&, int64_t, std::byte*) override { touched(); }
  void do_import_kv_page(KvPages&, int64_t, const std::byte*) override { touched(); }

 private:
  static void touched() { throw std::logic_error("the chip was touched before the model was checked"); }
  uint64_t free_bytes_;
};

// A safetensors file with its header changed by `edit`; data and offsets stay.
inline void rewrite_safetensors(const fs::path& from, const fs::path& to,
                                const std::function<void(Json&)>& edit) {
  const std::string bytes = read_file(from);
  uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof(length));
  Json header = parse_json(std::string_view(bytes).substr(8, length), "header");
  edit(header);
  const std::string text = dump_json(header);
  const uint64_t new_length = text.size();
  std::string out(sizeof(new_length), '\0');
  std::memcpy(out.data(), &new_length, sizeof(new_length));
  write_text(to, out + text + bytes.substr(8 + length));
}

// A copy of a golden GGUF file, changed in place.
class SpoiledGguf {
 public:
  SpoiledGguf(const std::string& folder, const std::string& file)
      : bytes_(read_file(golden_models() / folder / file)) {}

  // Writes over the scalar value of `key`.
  template <typename T>
  SpoiledGguf& set(std::string_view key, T value) {
    std::memcpy(bytes_.data() + after(key) + 4, &value, sizeof(value));  // 4: the value's type
    return *this;
  }
  // Both of one length.
  SpoiledGguf& replace(std::string_view text, std::string_view with) {
    EXPECT_EQ(text.size(), with.size());
    bytes_.replace(after(text) - text.size(), text.size(), with);
    return *this;
  }
  // Writes over the last bytes of the file: of the last tensor's data, padding aside.
  SpoiledGguf& set_floats(std::string_view bytes_of, float value) {
    const size_t at = bytes_.find(bytes_of);
    EXPECT_NE(at, std::string::npos);
    std::memcpy(bytes_.data() + at, &value, sizeof(value));
    return *this;
  }
  std::shared_ptr<ModelFiles> open() const {
    write_text(folder_.path() / "model.gguf", bytes_);
    return ModelFiles::open(folder_.path() / "model.gguf");
  }

 private:
  size_t after(std::string_view text) const {
    const size_t at = bytes_.find(text);
    EXPECT_NE(at, std::string::npos) << text;
    return at + text.size();
  }
  TemporaryFolder folder_;
  std::string bytes_;
};

}  // namespace qiao::testing
