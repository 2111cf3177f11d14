#include "dnd_fast/generator.hpp"

#include <algorithm>
#include <cmath>

#include "encoder.hpp"
#include "manifest.hpp"
#include "package.hpp"
#include "prompts.hpp"

namespace dnd_fast {
namespace {

Adapter to_adapter(const Manifest& manifest, const float* numbers, std::vector<std::string> warnings) {
  Adapter adapter{{}, manifest.adapter_config, std::move(warnings)};
  for (const TensorPlace& place : manifest.tensors) {
    const float* begin = numbers + place.offset;
    const float* end = begin + place.size;
    if (!std::all_of(begin, end, [](float value) { return std::isfinite(value); })) {
      throw Error(place.name + " holds NaN or infinity: the generator is damaged.");
    }
    adapter.tensors.push_back({place.name, place.shape, {begin, end}});
  }
  return adapter;
}

}  // namespace

struct Generator::Parts {
  Manifest manifest;
  Encoder encoder;
  Package decoder;

  explicit Parts(const std::filesystem::path& folder)
      : manifest(Manifest::load(folder)),
        encoder(manifest),
        decoder(folder / "decoder.pt2", manifest.device,
                "conditions " + std::to_string(manifest.batch) + " x " +
                    std::to_string(manifest.prompts) + " x " + std::to_string(manifest.length) +
                    " x " + std::to_string(manifest.width)) {}
};

Generator::Generator(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Generator::Generator(Generator&&) noexcept = default;
Generator& Generator::operator=(Generator&&) noexcept = default;
Generator::~Generator() = default;

Generator Generator::load(const std::filesystem::path& folder) {
  return Generator(std::make_unique<const Parts>(folder));
}

Adapter Generator::generate(const std::vector<std::string>& prompts, std::int64_t seed) const {
  return std::move(generate_batch(std::vector<std::vector<std::string>>(1, prompts), seed).front());
}

std::vector<Adapter> Generator::generate_batch(const std::vector<std::vector<std::string>>& tasks,
                                               std::int64_t seed) const {
  const Manifest& manifest = parts_->manifest;
  std::vector<std::vector<std::string>> warnings(tasks.size());
  std::vector<std::string> prompts;
  for (std::size_t task = 0; task < tasks.size(); ++task) {
    const std::vector<std::string>& given = tasks[task];
    check_prompts(given, tasks.size() == 1 ? "prompts" : "tasks[" + std::to_string(task) + "]");
    if (given.size() < manifest.prompts) {
      warnings[task].push_back("the generator takes " + std::to_string(manifest.prompts) +
                               " prompts and got " + std::to_string(given.size()) +
                               ": some are used repeatedly. More prompts describe the task better.");
    }
    for (const std::size_t index : sample(given.size(), manifest.prompts, seed)) {
      prompts.push_back(given[index]);
    }
  }
  std::vector<std::string> truncated;
  Array<float> embeddings = parts_->encoder.encode(prompts, truncated);
  for (auto& list : warnings) list.insert(list.end(), truncated.begin(), truncated.end());

  const std::size_t size = manifest.prompts * manifest.length * manifest.width;
  const std::vector<std::int64_t> shape = {
      static_cast<std::int64_t>(manifest.batch), static_cast<std::int64_t>(manifest.prompts),
      static_cast<std::int64_t>(manifest.length), static_cast<std::int64_t>(manifest.width)};
  std::vector<Adapter> adapters;
  for (std::size_t first = 0; first < tasks.size(); first += manifest.batch) {
    const std::size_t count = std::min(manifest.batch, tasks.size() - first);
    Array<float> condition{shape, std::vector<float>(manifest.batch * size)};  // zeros for no task
    std::copy_n(&embeddings.values[first * size], count * size, condition.values.begin());
    const Array<float> numbers = parts_->decoder.run(
        condition, {shape[0], static_cast<std::int64_t>(manifest.elements)});
    for (std::size_t i = 0; i < count; ++i) {
      adapters.push_back(to_adapter(manifest, &numbers.values[i * manifest.elements],
                                    std::move(warnings[first + i])));
    }
  }
  return adapters;
}

}  // namespace dnd_fast
