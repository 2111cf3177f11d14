#include "encoder.hpp"

#include <algorithm>
#include <map>

namespace dnd_fast {

Encoder::Encoder(const Manifest& manifest)
    : manifest_(manifest),
      tokenizer_(manifest.folder / "vocab.txt", manifest.tokenizer),
      package_(manifest.folder / "encoder.pt2", manifest.device,
               "up to " + std::to_string(manifest.slice_length) + " ids below " +
                   std::to_string(manifest.tokenizer.embeddings)) {}

Array<float> Encoder::encode(const std::vector<std::string>& prompts,
                             std::vector<std::string>& warnings) const {
  const std::size_t length = manifest_.length, width = manifest_.width;
  std::vector<Ids> tokens;
  std::size_t too_long = 0;
  for (const std::string& prompt : prompts) {
    Ids ids = tokenizer_.encode(prompt, "prompts[" + std::to_string(tokens.size()) + "]");
    too_long += ids.size() > length;
    tokens.push_back(tokenizer_.truncate(std::move(ids), length));
  }
  if (too_long) {
    warnings.push_back(std::to_string(too_long) + " of " + std::to_string(prompts.size()) +
                       " prompts are longer than " + std::to_string(length) +
                       " tokens and are truncated.");
  }
  Array<float> hidden{{static_cast<std::int64_t>(prompts.size()), static_cast<std::int64_t>(length),
                       static_cast<std::int64_t>(width)},
                      std::vector<float>(prompts.size() * length * width)};
  const std::vector<Slice> slices = cut(tokens);
  for (std::size_t left = slices.size(); left > 0;) {
    const std::size_t longest = std::max<std::size_t>(slices[left - 1].ids.size(), 1);
    const std::size_t span = manifest_.encode_padding ? manifest_.slice_length : longest;
    const std::size_t rows = std::max<std::size_t>(1, manifest_.tokens_per_batch / span);
    const std::size_t count = std::min(left, rows);
    const Slice* batch = &slices[left -= count];
    const Array<float> states = hidden_states(batch, count, span);
    const auto stride = static_cast<std::size_t>(states.shape[1]) * width;
    for (std::size_t row = 0; row < count; ++row) {
      const std::size_t kept = manifest_.encode_padding ? span : batch[row].ids.size();
      for (const Place& place : batch[row].places) {
        const float* from = &states.values[row * stride];
        std::copy_n(from, std::min(kept, length - place.start) * width,
                    &hidden.values[(place.prompt * length + place.start) * width]);
      }
    }
  }
  return hidden;
}

/// All different slices, the shortest first. Nothing but padding is a slice without ids.
std::vector<Encoder::Slice> Encoder::cut(const std::vector<Ids>& prompts) const {
  std::vector<Slice> slices;
  std::map<Ids, std::size_t> known;
  for (std::size_t prompt = 0; prompt < prompts.size(); ++prompt) {
    const Ids& ids = prompts[prompt];
    const std::size_t end = manifest_.encode_padding ? manifest_.length : ids.size();
    for (std::size_t start = 0; start < end; start += manifest_.slice_length) {
      const auto from = ids.begin() + static_cast<std::ptrdiff_t>(std::min(start, ids.size()));
      const auto left = static_cast<std::size_t>(ids.end() - from);
      const Ids part(from, from + static_cast<std::ptrdiff_t>(std::min(left, manifest_.slice_length)));
      const auto [entry, is_new] = known.emplace(part, slices.size());
      if (is_new) slices.push_back({part, {}});
      slices[entry->second].places.push_back({prompt, start});
    }
  }
  std::stable_sort(slices.begin(), slices.end(),
                   [](const Slice& a, const Slice& b) { return a.ids.size() < b.ids.size(); });
  return slices;
}

/// One pass, `[rows, positions, C]`: at least `count` rows of at least `span` positions.
Array<float> Encoder::hidden_states(const Slice* slices, std::size_t count, std::size_t span) const {
  // The package takes no fewer than two of either: to one it would have been compiled as a constant.
  const std::size_t rows = std::max<std::size_t>(count, 2), positions = std::max<std::size_t>(span, 2);
  const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows),
                                           static_cast<std::int64_t>(positions)};
  Array<std::int64_t> ids{shape, Ids(rows * positions, tokenizer_.padding())};
  Array<std::int64_t> mask{shape, Ids(rows * positions, 0)};
  for (std::size_t row = 0; row < count; ++row) {
    const auto at = static_cast<std::ptrdiff_t>(row * positions);
    std::copy(slices[row].ids.begin(), slices[row].ids.end(), ids.values.begin() + at);
    std::fill_n(mask.values.begin() + at, slices[row].ids.size(), 1);
  }
  return package_.run(ids, mask, {shape[0], shape[1], static_cast<std::int64_t>(manifest_.width)});
}

}  // namespace dnd_fast
