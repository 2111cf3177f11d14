/// BERT's tokenizer: text to the ids of word pieces, the very ids that the tokenizers library gives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "manifest.hpp"

namespace dnd_fast {

class Tokenizer {
 public:
  /// Read vocab.txt, one token a line. Throws Error where it cannot be read, or has more tokens than
  /// the encoder has embeddings.
  Tokenizer(const std::filesystem::path& vocabulary, TokenizerSettings settings);

  /// The ids of a UTF-8 text, with those that begin and end every text. Throws Error, which calls the
  /// text `what`, where it is not UTF-8.
  std::vector<std::int64_t> encode(std::string_view text, const std::string& what) const;

  /// At most `length` ids: content goes from one side, what begins and ends a text stays.
  std::vector<std::int64_t> truncate(std::vector<std::int64_t> ids, std::size_t length) const;

  std::int64_t padding() const { return settings_.padding; }

 private:
  struct Word {
    std::string text;
    std::size_t characters = 0;
  };

  void encode_plain(std::u32string_view text, std::vector<std::int64_t>& ids) const;
  void append_word(Word& word, std::vector<std::int64_t>& ids) const;
  std::u32string normalize(char32_t point) const;

  TokenizerSettings settings_;
  std::vector<std::pair<std::u32string, std::int64_t>> special_;  // the longest first
  std::unordered_map<std::string, std::int64_t> pieces_;
};

}  // namespace dnd_fast
