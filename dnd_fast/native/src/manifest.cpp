#include "manifest.hpp"

#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <set>

#include "dnd_fast/generator.hpp"
#include "files.hpp"
#include "json.hpp"

namespace dnd_fast {
namespace {

constexpr std::int64_t kFormatVersion = 1;
constexpr std::int64_t kLargest = std::int64_t{1} << 31;
const char* const kFiles[] = {"decoder.pt2", "encoder.pt2", "vocab.txt"};

/// Whether a text is `yes`; it must be `yes` or `no`.
bool is_first(const Fields& fields, const std::string& key, const std::string& yes,
              const std::string& no) {
  const std::string text = fields.text(key);
  if (text != yes && text != no) fields.refuse(key, "'" + yes + "' or '" + no + "'");
  return text == yes;
}

void check_versions(const Fields& fields) {
  if (fields.integer("format_version", 0, kLargest) != kFormatVersion) {
    fields.refuse("format_version", std::to_string(kFormatVersion) + "; export the generator again");
  }
  const std::string torch = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  if (fields.text("torch").rfind(torch + ".", 0) != 0) {
    fields.refuse("torch", torch + ", which this runtime is linked with; export the generator again");
  }
}

/// Compiled code uses the vector instructions of the machine that it was exported on.
void check_processor(const Fields& fields) {
  if (!is_first(fields, "device", "cpu", "cuda")) return;
  const std::string here = at::get_cpu_capability();
  if (fields.text("cpu_capability") != here) {
    fields.refuse("cpu_capability", here + ", as on this machine; export the generator on one like it");
  }
}

/// Names are fixed, so that none can lead out of the folder.
void check_files(const Fields& files, const std::filesystem::path& folder) {
  for (const char* name : kFiles) {
    const std::string found = sha256(folder / name);
    if (files.text(name) != found) {
      throw Error((folder / name).string() + " is damaged: its SHA-256 is " + found + ", expected " +
                  files.text(name) + "; export the generator again.");
    }
  }
  if (files.json().size() != std::size(kFiles)) {
    throw Error(files.where() + " names other files than decoder.pt2, encoder.pt2 and vocab.txt.");
  }
}

TokenizerSettings tokenizer_settings(const Fields& fields) {
  const std::int64_t embeddings = fields.integer("embeddings", 1, kLargest);
  const auto id = [&](const std::string& key) { return fields.integer(key, 0, embeddings - 1); };
  TokenizerSettings settings{
      fields.flag("clean_text"),
      fields.flag("chinese_characters"),
      fields.flag("strip_accents"),
      fields.flag("lowercase"),
      fields.text("continuation"),
      static_cast<std::size_t>(fields.integer("max_word_length", 1, kLargest)),
      embeddings,
      id("unknown"),
      id("start"),
      id("end"),
      id("padding"),
      is_first(fields, "truncation_side", "left", "right"),
      {},
  };
  const Fields special = fields.object("special_tokens");
  for (const auto& [text, value] : special.json().items()) {
    if (text.empty()) throw Error(special.where() + " has an empty token.");
    settings.special_tokens[text] = special.integer(text, 0, embeddings - 1);
  }
  return settings;
}

/// Matrices that lie one after another, without overlap or gap.
std::vector<TensorPlace> tensor_places(const Fields& manifest) {
  std::vector<TensorPlace> places;
  std::set<std::string> names;
  std::int64_t offset = 0;
  for (const Json& entry : manifest.array("tensors")) {
    const Fields fields(entry, manifest.where() + ": tensors[" + std::to_string(places.size()) + "]");
    const auto shape = fields.integers("shape");
    if (shape.size() != 2) fields.refuse("shape", "two sizes");
    const std::int64_t size = element_count(shape, fields.where());
    if (size == 0) fields.refuse("shape", "positive sizes");
    if (fields.integer("offset", 0, INT64_MAX) != offset) {
      fields.refuse("offset", std::to_string(offset) + ", where the tensor before ends");
    }
    if (!names.insert(fields.text("name")).second) fields.refuse("name", "another than before");
    places.push_back({fields.text("name"), shape, static_cast<std::size_t>(offset),
                      static_cast<std::size_t>(size)});
    offset += size;
    if (offset > kLargest * 512) throw Error(manifest.where() + ": the tensors are too large.");
  }
  if (places.empty()) throw Error(manifest.where() + ": there are no tensors.");
  return places;
}

}  // namespace

Manifest Manifest::load(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw Error("there is no exported generator at " + folder.string() +
                "; make one: dnd-fast export demo --out " + folder.string());
  }
  const std::string where = (folder / "generator.json").string();
  const Json json = parse_object(read_file(where), where);
  const Fields fields(json, where);
  check_versions(fields);
  check_processor(fields);
  check_files(fields.object("files"), folder);
  const auto size = [&](const std::string& key) {
    return static_cast<std::size_t>(fields.integer(key, 1, kLargest));
  };
  Manifest manifest{};
  manifest.folder = folder;
  manifest.device = fields.text("device");
  manifest.batch = size("batch");
  manifest.prompts = size("prompts");
  manifest.length = size("length");
  manifest.width = size("width");
  manifest.encode_padding = is_first(fields, "padding", "encoded", "zero");
  manifest.slice_length = size("slice_length");
  manifest.tokens_per_batch = size("tokens_per_batch");
  manifest.tokenizer = tokenizer_settings(fields.object("tokenizer"));
  manifest.tensors = tensor_places(fields);
  manifest.elements = manifest.tensors.back().offset + manifest.tensors.back().size;
  manifest.adapter_config = fields.object("adapter_config").json().dump(2, ' ', true) + "\n";
  element_count({fields.integer("batch", 1, kLargest), fields.integer("prompts", 1, kLargest),
                 fields.integer("length", 1, kLargest), fields.integer("width", 1, kLargest)},
                where + ": the condition");
  return manifest;
}

}  // namespace dnd_fast
