/// Prompts to embeddings, as dnd_fast/text/encoder.py makes them: slices of what is too long, batches
/// of slices, zeros or padding behind.
#pragma once

#include <string>
#include <vector>

#include "manifest.hpp"
#include "package.hpp"
#include "tokenizer.hpp"

namespace dnd_fast {

class Encoder {
 public:
  explicit Encoder(const Manifest& manifest);

  /// The embeddings `[prompts, L, C]`. A note of prompts that were truncated is added to `warnings`.
  Array<float> encode(const std::vector<std::string>& prompts,
                      std::vector<std::string>& warnings) const;

 private:
  using Ids = std::vector<std::int64_t>;

  struct Place {
    std::size_t prompt, start;
  };
  struct Slice {
    Ids ids;
    std::vector<Place> places;  // of equal slices, which are encoded once
  };

  std::vector<Slice> cut(const std::vector<Ids>& prompts) const;
  Array<float> hidden_states(const Slice* slices, std::size_t count, std::size_t span) const;

  const Manifest& manifest_;
  Tokenizer tokenizer_;
  Package package_;
};

}  // namespace dnd_fast
