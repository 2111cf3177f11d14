/// generator.json: what an exported folder holds, checked before anything of it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace dnd_fast {

/// How the tokenizer is set; see BertTokenizer.
struct TokenizerSettings {
  bool clean_text, chinese_characters, strip_accents, lowercase;
  std::string continuation;  ///< before a piece that does not begin its word
  std::size_t max_word_length;
  std::int64_t embeddings;  ///< of the encoder; all ids are below
  std::int64_t unknown, start, end, padding;
  bool keep_right;  ///< where prompts are truncated: on the left
  std::map<std::string, std::int64_t> special_tokens;
};

/// Where one LoRA matrix lies among the decoder's numbers.
struct TensorPlace {
  std::string name;
  std::vector<std::int64_t> shape;
  std::size_t offset, size;
};

struct Manifest {
  std::filesystem::path folder;
  std::string device;
  std::size_t batch;                   ///< tasks of a pass
  std::size_t prompts, length, width;  ///< N, L, C of a condition
  bool encode_padding;                 ///< or leave zeros where a prompt has ended
  std::size_t slice_length, tokens_per_batch;
  TokenizerSettings tokenizer;
  std::vector<TensorPlace> tensors;
  std::size_t elements;  ///< of all tensors
  std::string adapter_config;

  /// Read `folder`. Throws Error where it is damaged, lacks a file, or is for another runtime.
  static Manifest load(const std::filesystem::path& folder);
};

}  // namespace dnd_fast
