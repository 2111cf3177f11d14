/// A compiled model of AOTInductor's. Everything that needs libtorch is behind this.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace dnd_fast {

/// Numbers in memory of the host, row by row.
template <class T>
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<T> values;
};

class Package {
 public:
  /// Load a `.pt2` file onto "cpu" or "cuda". Compiled code does not check its inputs: what it
  /// `takes` is what it was exported with, word by word. Throws Error.
  Package(const std::filesystem::path& file, const std::string& device, const std::string& takes);
  Package(Package&&) noexcept;
  ~Package();

  /// Run the model. Throws Error where it fails, or gives something else than float32 of that shape.
  Array<float> run(const Array<float>& input, const std::vector<std::int64_t>& shape) const;
  Array<float> run(const Array<std::int64_t>& input, const Array<std::int64_t>& other,
                   const std::vector<std::int64_t>& shape) const;

 private:
  struct Model;
  std::unique_ptr<Model> model_;
};

}  // namespace dnd_fast
