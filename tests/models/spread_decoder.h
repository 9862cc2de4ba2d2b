// A model spread over threads that stand for processes: rank 0's decoder here, the others follow.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "models/decoder.h"
#include "models/lora_files.h"
#include "parallel/communicator.h"

namespace qiao::testing {

class SpreadDecoder {
 public:
  // Throws what rank 0's load throws.
  SpreadDecoder(const std::filesystem::path& model, int size, const std::string& chip = "cpu",
                DecoderOptions options = {}, const std::vector<std::filesystem::path>& adapters = {})
      : errors_(static_cast<size_t>(size)) {
    auto communicators = make_thread_communicators(size, 60);
    for (int rank = 1; rank < size; ++rank) {
      followers_.emplace_back([this, model, chip, options, adapters, rank,
                               own = std::move(communicators[static_cast<size_t>(rank)])]() mutable {
        try {
          Part part(model, chip, options, adapters, *own);
          part.decoder->follow();
          part.decoder.reset();
          own->finish();
        } catch (...) {
          errors_[static_cast<size_t>(rank)] = std::current_exception();
        }
        own.reset();
      });
    }
    communicator_ = std::move(communicators[0]);
    try {
      part_ = std::make_unique<Part>(model, chip, options, adapters, *communicator_);
    } catch (...) {
      communicator_.reset();
      join();
      throw;
    }
  }
  ~SpreadDecoder() {
    if (!part_) return;
    part_->decoder.reset();
    try {
      communicator_->finish();
    } catch (const Error&) {  // of those that were lost `errors` tells
    }
    communicator_.reset();
    join();
  }
  const Decoder& operator*() const { return *part_->decoder; }
  const Decoder* operator->() const { return part_->decoder.get(); }
  // By rank; null: it goes well.
  const std::vector<std::exception_ptr>& errors() const { return errors_; }

 private:
  struct Part {
    Part(const std::filesystem::path& model, const std::string& chip, DecoderOptions options,
         const std::vector<std::filesystem::path>& adapters, Communicator& communicator)
        : files(ModelFiles::open(model)), backend(make_backend(chip, {.threads = 1})) {
      options.ranks = &communicator;
      decoder = Decoder::load(*files, *backend, options);
      for (const auto& adapter : adapters) decoder->add_adapter(*LoraFiles::open(adapter));
    }
    std::shared_ptr<ModelFiles> files;
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Decoder> decoder;
  };
  void join() {
    for (std::thread& follower : followers_) follower.join();
    followers_.clear();
  }

  std::vector<std::exception_ptr> errors_;
  std::vector<std::thread> followers_;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Part> part_;
};

}  // namespace qiao::testing
