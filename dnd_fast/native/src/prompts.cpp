#include "prompts.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string_view>
#include <unordered_set>

#include "dnd_fast/generator.hpp"
#include "files.hpp"
#include "text.hpp"

namespace dnd_fast {
namespace {

/// How Python's random.seed(int) fills the state of a Mersenne twister (`init_by_array`), in the form
/// that std::mt19937 takes.
class PythonSeed {
 public:
  using result_type = std::uint32_t;

  explicit PythonSeed(std::int64_t seed) {
    auto magnitude = static_cast<std::uint64_t>(seed);
    if (seed < 0) magnitude = 0 - magnitude;  // Python takes the absolute value
    key_.push_back(static_cast<std::uint32_t>(magnitude));
    if (magnitude >> 32) key_.push_back(static_cast<std::uint32_t>(magnitude >> 32));
  }

  template <class Iterator>
  void generate(Iterator begin, Iterator end) const {
    const auto size = static_cast<std::size_t>(end - begin);
    std::vector<std::uint32_t> state(size);
    state[0] = 19650218;
    for (std::size_t i = 1; i < size; ++i) {
      state[i] = 1812433253u * mixed(state[i - 1]) + static_cast<std::uint32_t>(i);
    }
    std::size_t i = 1, j = 0;
    const auto advance = [&] {
      if (++i == size) state[0] = state[size - 1], i = 1;
    };
    for (std::size_t k = std::max(size, key_.size()); k > 0; --k) {
      state[i] = (state[i] ^ mixed(state[i - 1]) * 1664525u) + key_[j] + static_cast<std::uint32_t>(j);
      advance();
      if (++j == key_.size()) j = 0;
    }
    for (std::size_t k = size - 1; k > 0; --k) {
      state[i] = (state[i] ^ mixed(state[i - 1]) * 1566083941u) - static_cast<std::uint32_t>(i);
      advance();
    }
    state[0] = 0x80000000u;
    std::copy(state.begin(), state.end(), begin);
  }

 private:
  static std::uint32_t mixed(std::uint32_t word) { return word ^ (word >> 30); }

  std::vector<std::uint32_t> key_;
};

/// Python's random.Random, as far as sampling needs it.
class PythonRandom {
 public:
  explicit PythonRandom(std::int64_t seed) {
    PythonSeed sequence(seed);
    engine_.seed(sequence);
  }

  /// An integer below `limit`, which is at least 1 and below 2^32.
  std::size_t below(std::size_t limit) {
    int bits = 0;
    while (limit >> bits) ++bits;
    std::size_t drawn;
    do {
      drawn = engine_() >> (32 - bits);
    } while (drawn >= limit);
    return drawn;
  }

  /// A number in [0, 1) with 53 bits.
  double uniform() {
    const std::uint32_t high = engine_() >> 5, low = engine_() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
  }

 private:
  std::mt19937 engine_;
};

std::vector<std::string> lines_of(std::string text) {
  if (text.compare(0, 3, "\xef\xbb\xbf") == 0) text.erase(0, 3);
  std::vector<std::string> lines(1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool pair = text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n';
    if (pair) continue;  // the line ends with the next character
    if (text[i] == '\n' || text[i] == '\r') {
      lines.emplace_back();
    } else {
      lines.back() += text[i];
    }
  }
  return lines;
}

std::string prompt_of(const std::string& line, const std::string& where) {
  const auto record = nlohmann::json::parse(line, nullptr, false);
  if (record.is_discarded()) throw Error(where + ": not valid JSON.");
  if (!record.is_object() || !record.contains("prompt")) {
    throw Error(where + ": there is no key 'prompt' in it.");
  }
  if (!record["prompt"].is_string()) {
    throw Error(where + ": the prompt is of type " + record["prompt"].type_name() +
                ", expected a string.");
  }
  return record["prompt"];
}

}  // namespace

std::vector<std::string> read_prompts(const std::filesystem::path& file) {
  const bool json = file.extension() == ".jsonl";
  if (!json && file.extension() != ".txt") {
    throw Error(file.string() + ": prompts are read from .txt (one a line) or .jsonl (key 'prompt') "
                                "files.");
  }
  std::vector<std::string> prompts;
  std::size_t number = 0;
  for (const std::string& line : lines_of(read_file(file))) {
    const std::string where = file.string() + ", line " + std::to_string(++number);
    if (is_blank(line, where)) continue;
    prompts.push_back(json ? prompt_of(line, where) : line);
  }
  check_prompts(prompts, file.string());
  return prompts;
}

void check_prompts(const std::vector<std::string>& prompts, const std::string& where) {
  if (prompts.empty()) throw Error(where + ": there are no prompts; give at least one.");
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::string name = where + "[" + std::to_string(i) + "]";
    if (is_blank(prompts[i], name)) throw Error(name + " is empty; remove it.");
  }
}

std::vector<std::size_t> sample(std::size_t size, std::size_t count, std::int64_t seed) {
  PythonRandom random(seed);
  std::vector<std::size_t> drawn;
  if (size < count) {  // random.choices
    drawn.resize(size);
    std::iota(drawn.begin(), drawn.end(), 0);
    while (drawn.size() < count) {
      const double place = std::floor(random.uniform() * static_cast<double>(size));
      drawn.push_back(static_cast<std::size_t>(place));
    }
    return drawn;
  }
  // random.sample, which keeps either a pool or a set, whichever it takes to be smaller.
  std::size_t set_size = 21;
  if (count > 5) {
    std::size_t power = 1;
    while (power < 3 * count) power *= 4;
    set_size += power;
  }
  if (size <= set_size) {
    std::vector<std::size_t> pool(size);
    std::iota(pool.begin(), pool.end(), 0);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t j = random.below(size - i);
      drawn.push_back(pool[j]);
      pool[j] = pool[size - i - 1];
    }
    return drawn;
  }
  std::unordered_set<std::size_t> chosen;
  while (drawn.size() < count) {
    const std::size_t j = random.below(size);
    if (chosen.insert(j).second) drawn.push_back(j);
  }
  return drawn;
}

}  // namespace dnd_fast
