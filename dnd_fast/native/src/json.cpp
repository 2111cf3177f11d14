#include "json.hpp"

#include "dnd_fast/generator.hpp"

namespace dnd_fast {
namespace {

constexpr int kDepth = 32;  // writing JSON recurses, so that a deep one would run out of stack
constexpr std::int64_t kElements = std::int64_t{1} << 40;

/// An integer between two bounds; null where it is none.
const Json* bounded(const Json& value, std::int64_t low, std::int64_t high) {
  if (!value.is_number_integer()) return nullptr;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(high)) {
    return nullptr;
  }
  const auto number = value.get<std::int64_t>();
  return number < low || number > high ? nullptr : &value;
}

}  // namespace

Json parse_object(std::string_view text, const std::string& where) {
  const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kDepth) throw Error(where + " nests deeper than " + std::to_string(kDepth) + " levels.");
    return true;
  };
  try {
    Json parsed = Json::parse(text, shallow);
    if (!parsed.is_object()) {
      throw Error(where + " holds JSON of type " + parsed.type_name() + ", expected an object.");
    }
    return parsed;
  } catch (const Json::parse_error& error) {  // whose own text may hold bytes that are no UTF-8
    throw Error(where + " is not valid JSON: see byte " + std::to_string(error.byte) + ".");
  }
}

Fields::Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (!object.is_object()) {
    throw Error(where_ + " is of type " + object.type_name() + ", expected an object.");
  }
}

const Json& Fields::at(const std::string& key) const {
  const auto found = object_.find(key);
  if (found == object_.end()) throw Error(where_ + ": there is no key '" + key + "' in it.");
  return *found;
}

Fields Fields::object(const std::string& key) const { return {at(key), where_ + ": " + key}; }

const Json& Fields::array(const std::string& key) const {
  if (!at(key).is_array()) refuse(key, "an array");
  return at(key);
}

std::string Fields::text(const std::string& key) const {
  if (!at(key).is_string()) refuse(key, "a string");
  return at(key);
}

bool Fields::flag(const std::string& key) const {
  if (!at(key).is_boolean()) refuse(key, "true or false");
  return at(key);
}

std::int64_t Fields::integer(const std::string& key, std::int64_t low, std::int64_t high) const {
  const Json* value = bounded(at(key), low, high);
  if (!value) refuse(key, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return *value;
}

std::vector<std::int64_t> Fields::integers(const std::string& key) const {
  std::vector<std::int64_t> numbers;
  for (const Json& element : array(key)) {
    const Json* value = bounded(element, 0, kElements);
    if (!value) refuse(key, "integers from 0 to 2^40");
    numbers.push_back(*value);
  }
  return numbers;
}

void Fields::refuse(const std::string& key, const std::string& expected) const {
  std::string found = at(key).dump(-1, ' ', true);
  if (found.size() > 80) found = found.substr(0, 77) + "...";
  throw Error(where_ + ": " + key + " is " + found + ", expected " + expected + ".");
}

std::int64_t element_count(const std::vector<std::int64_t>& shape, const std::string& where) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) {
    if (size != 0 && count > kElements / size) throw Error(where + " has more than 2^40 elements.");
    count *= size;
  }
  return count;
}

}  // namespace dnd_fast
