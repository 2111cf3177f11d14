/// dnd-generate PROMPTS --generator FOLDER --out ADAPTER [--seed N]
#include <charconv>
#include <csignal>
#include <iostream>
#include <map>
#include <new>
#include <string_view>

#include "dnd_fast/generator.hpp"

namespace {

constexpr std::string_view kUsage =
    "usage: dnd-generate PROMPTS --generator FOLDER --out ADAPTER [--seed N]\n"
    "\n"
    "Generate a LoRA adapter for a task from its unlabelled prompts.\n"
    "\n"
    "  PROMPTS             a .txt file, one prompt a line, or a .jsonl file with the key 'prompt'\n"
    "  --generator FOLDER  made by: dnd-fast export\n"
    "  --out ADAPTER       folder for the adapter, in PEFT's format\n"
    "  --seed N            of the choice among more prompts than needed (0)\n";

/// A command line that cannot be understood.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string prompts, generator, out;
  std::int64_t seed = 0;
};

std::int64_t parse_seed(const std::string& text) {
  std::int64_t seed = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, seed);
  if (error != std::errc() || rest != end) {
    throw UsageError("--seed is '" + text + "', expected an integer of 64 bits.");
  }
  return seed;
}

Options parse(int count, char** arguments) {
  std::map<std::string, std::string> given;
  for (int i = 1; i < count; ++i) {
    std::string name = arguments[i], value = name;
    if (name.rfind("--", 0) != 0) {
      name = "PROMPTS";
    } else if (const auto equals = name.find('='); equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    } else if (++i < count) {
      value = arguments[i];
    } else {
      throw UsageError(name + " has no value.");
    }
    if (name != "PROMPTS" && name != "--generator" && name != "--out" && name != "--seed") {
      throw UsageError("there is no option " + name + ".");
    }
    if (!given.emplace(name, value).second) throw UsageError(name + " is given twice.");
  }
  for (const char* name : {"PROMPTS", "--generator", "--out"}) {
    if (given[name].empty()) throw UsageError(std::string(name) + " is missing.");
  }
  const std::string seed = given.count("--seed") ? given["--seed"] : "0";
  return {given["PROMPTS"], given["--generator"], given["--out"], parse_seed(seed)};
}

void run(const Options& options) {
  const auto prompts = dnd_fast::read_prompts(options.prompts);
  const auto generator = dnd_fast::Generator::load(options.generator);
  const auto adapter = generator.generate(prompts, options.seed);
  for (const std::string& warning : adapter.warnings) std::cerr << "warning: " << warning << '\n';
  adapter.save(options.out);
  std::cout << "Wrote an adapter of " << adapter.tensors.size() << " tensors to " << options.out << ".\n";
}

}  // namespace

int main(int count, char** arguments) try {
  if (count == 2 && (arguments[1] == std::string_view("--help") || arguments[1] == std::string_view("-h"))) {
    std::cout << kUsage;
    return 0;
  }
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is an error like a full disk
  run(parse(count, arguments));
  return 0;
} catch (const UsageError& error) {
  std::cerr << "error: " << error.what() << '\n' << kUsage;
  return 2;
} catch (const std::bad_alloc&) {
  std::cerr << "error: memory has run out; nothing was written.\n";
  return 1;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
