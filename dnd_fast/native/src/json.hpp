/// JSON of files that may be damaged or hostile: limits are checked, and what is wrong is named.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace dnd_fast {

using Json = nlohmann::json;

/// An object that nests no deeper than a few levels. Throws Error, which begins with `where`.
Json parse_object(std::string_view text, const std::string& where);

/// One object of a file, which knows where it stands. All its functions throw Error.
class Fields {
 public:
  Fields(const Json& object, std::string where);

  const Json& at(const std::string& key) const;
  Fields object(const std::string& key) const;
  const Json& array(const std::string& key) const;
  std::string text(const std::string& key) const;
  bool flag(const std::string& key) const;
  std::int64_t integer(const std::string& key, std::int64_t low, std::int64_t high) const;
  std::vector<std::int64_t> integers(const std::string& key) const;  // of an array, none negative

  const Json& json() const { return object_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const;

 private:
  const Json& object_;
  std::string where_;
};

/// The number of elements of a shape. Throws Error, which begins with `where`, above 2^40.
std::int64_t element_count(const std::vector<std::int64_t>& shape, const std::string& where);

}  // namespace dnd_fast
