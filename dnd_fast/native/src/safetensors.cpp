#include "safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "files.hpp"
#include "json.hpp"

// Numbers are copied as they lie in memory, and the format is little-endian.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a big-endian machine needs to swap bytes");

namespace dnd_fast {
namespace {

constexpr std::uint64_t kHeaderLimit = 100'000'000;  // the format's own
constexpr std::size_t kCountBytes = 8;

struct Entry {
  std::int64_t begin, end;
  Tensor tensor;
};

Entry parse_entry(const std::string& name, const Fields& fields) {
  const std::string where = fields.where();
  if (fields.text("dtype") != "F32") fields.refuse("dtype", "\"F32\", all that is read here");
  const auto offsets = fields.integers("data_offsets");
  if (offsets.size() != 2) fields.refuse("data_offsets", "two of them");
  Entry entry{offsets[0], offsets[1], {name, fields.integers("shape"), {}}};
  const std::int64_t bytes = 4 * element_count(entry.tensor.shape, where);
  if (entry.end - entry.begin != bytes) {
    fields.refuse("data_offsets", std::to_string(bytes) + " bytes, as many as its shape has");
  }
  return entry;
}

/// What Python's `hash_tensors` gives for these tensors and the metadata {"format": "pt"}.
std::string checksum(const std::vector<const Tensor*>& order) {
  Sha256 hash;
  hash.add(R"({"format": "pt"})");
  for (const Tensor* tensor : order) {
    std::string about = tensor->name + " torch.float32 [";
    for (const std::int64_t size : tensor->shape) {
      if (about.back() != '[') about += ", ";
      about += std::to_string(size);
    }
    hash.add(about + "]");
    hash.add({reinterpret_cast<const char*>(tensor->values.data()),
              sizeof(float) * tensor->values.size()});
  }
  return hash.digest();
}

}  // namespace

std::vector<const Tensor*> safetensors_order(const std::vector<Tensor>& tensors) {
  std::vector<const Tensor*> order;
  for (const Tensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const Tensor* a, const Tensor* b) { return a->name < b->name; });
  return order;
}

std::string safetensors_header(const std::vector<const Tensor*>& order) {
  std::string text = R"({"__metadata__":{"format":"pt","sha256":")" + checksum(order) + "\"}";
  std::size_t offset = 0;
  for (const Tensor* tensor : order) {
    const std::size_t end = offset + sizeof(float) * tensor->values.size();
    nlohmann::ordered_json entry;
    entry["dtype"] = "F32";
    entry["shape"] = tensor->shape;
    entry["data_offsets"] = {offset, end};
    text += "," + Json(tensor->name).dump() + ":" + entry.dump();
    offset = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the numbers are aligned
  const std::uint64_t size = text.size();
  std::string count(kCountBytes, '\0');
  std::memcpy(count.data(), &size, kCountBytes);
  return count + text;
}

std::vector<Tensor> parse_safetensors(std::string_view content, const std::string& where) {
  std::uint64_t size = 0;
  if (content.size() < kCountBytes) throw Error(where + " is truncated or not a safetensors file.");
  std::memcpy(&size, content.data(), kCountBytes);
  content.remove_prefix(kCountBytes);
  if (size > kHeaderLimit || size > content.size()) {
    throw Error(where + " is truncated or not a safetensors file: its header would have " +
                std::to_string(size) + " bytes.");
  }
  const Json header = parse_object(content.substr(0, size), where);
  content.remove_prefix(size);
  std::vector<Entry> entries;
  for (const auto& [name, fields] : header.items()) {
    if (name == "__metadata__") continue;
    entries.push_back(parse_entry(name, Fields(fields, where + ": " + name)));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  std::int64_t expected = 0;
  std::vector<Tensor> tensors;
  for (Entry& entry : entries) {
    if (entry.begin != expected) {
      throw Error(where + ": " + entry.tensor.name + " begins at byte " + std::to_string(entry.begin) +
                  ", expected " + std::to_string(expected) + ".");
    }
    expected = entry.end;
    if (static_cast<std::uint64_t>(expected) > content.size()) break;
    const auto bytes = static_cast<std::size_t>(entry.end - entry.begin);
    entry.tensor.values.resize(bytes / sizeof(float));
    if (bytes) std::memcpy(entry.tensor.values.data(), content.data() + entry.begin, bytes);
    tensors.push_back(std::move(entry.tensor));
  }
  if (static_cast<std::uint64_t>(expected) != content.size()) {
    throw Error(where + " is truncated or has bytes to spare: " + std::to_string(content.size()) +
                " bytes of numbers, expected " + std::to_string(expected) + ".");
  }
  const Json about = header.value("__metadata__", Json::object());
  if (about.is_object() && about.size() == 2 && about.value("format", Json()) == "pt" &&
      about.contains("sha256") && about["sha256"] != checksum(safetensors_order(tensors))) {
    throw Error(where + " is damaged: its content does not have the SHA-256 that it had when it was "
                        "written.");
  }
  return tensors;
}

}  // namespace dnd_fast
