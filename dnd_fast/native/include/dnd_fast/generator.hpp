/// Prompts in, a LoRA adapter out, in one forward pass, without Python.
///
///     auto generator = dnd_fast::Generator::load("exported");
///     generator.generate({"say otter backwards", "spell lemon in reverse"}).save("adapter");
///
/// A folder made by `dnd-fast export` holds compiled code: load only those that you trust.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace dnd_fast {

/// Unusable input or a failure of the system. The message names the thing, what was found and, where
/// there is something to do, what.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One LoRA matrix, row by row.
struct Tensor {
  std::string name;  ///< as PEFT has it on disk
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

/// LoRA matrices and their configuration, as PEFT has them on disk.
struct Adapter {
  std::vector<Tensor> tensors;
  std::string config;                 ///< the text of adapter_config.json
  std::vector<std::string> warnings;  ///< of generating it: prompts repeated, prompts truncated

  /// Read a folder in PEFT's format whose tensors are float32. Throws Error.
  static Adapter load(const std::filesystem::path& folder);

  /// Write a folder that PEFT and other engines load; all or nothing. Files of an earlier adapter are
  /// replaced, other files stay. Throws Error.
  void save(const std::filesystem::path& folder) const;
};

/// An exported generator. It never changes, and may be used from several threads.
class Generator {
 public:
  /// Read a folder made by `dnd-fast export`, and check the SHA-256 of its files. Throws Error.
  static Generator load(const std::filesystem::path& folder);

  Generator(Generator&&) noexcept;
  Generator& operator=(Generator&&) noexcept;
  ~Generator();

  /// An adapter for the task that these prompts, in UTF-8, are of.
  ///
  /// `seed` chooses among more prompts than the generator takes, as Python's does. Throws Error where
  /// prompts are missing, blank or not UTF-8.
  Adapter generate(const std::vector<std::string>& prompts, std::int64_t seed = 0) const;

  /// An adapter for each of several tasks, decoded as many at a time as the export has in a pass.
  std::vector<Adapter> generate_batch(const std::vector<std::vector<std::string>>& tasks,
                                      std::int64_t seed = 0) const;

 private:
  struct Parts;
  explicit Generator(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

/// The prompts in a `.txt` file, one a line, or a `.jsonl` file, under the key `prompt`. Throws Error.
std::vector<std::string> read_prompts(const std::filesystem::path& file);

}  // namespace dnd_fast
