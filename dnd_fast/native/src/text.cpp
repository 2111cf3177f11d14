#include "text.hpp"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>

#include "dnd_fast/generator.hpp"

namespace dnd_fast {

std::u32string decode_utf8(std::string_view text, const std::string& what) {
  std::u32string points;
  points.reserve(text.size());
  // In steps, since ICU counts with 32 bits.
  for (std::size_t at = 0; at < text.size();) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data()) + at;
    const auto left = static_cast<std::int32_t>(std::min<std::size_t>(text.size() - at, 4));
    std::int32_t length = 0;
    UChar32 point;
    U8_NEXT(bytes, length, left, point);
    if (point < 0) {
      throw Error(what + " is not UTF-8 text: byte " + std::to_string(at) +
                  " begins no character; convert it first.");
    }
    points.push_back(static_cast<char32_t>(point));
    at += static_cast<std::size_t>(length);
  }
  return points;
}

void append_utf8(std::string& text, UChar32 point) {
  std::uint8_t bytes[U8_MAX_LENGTH];
  std::int32_t length = 0;
  U8_APPEND_UNSAFE(bytes, length, point);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
}

bool is_blank(std::string_view text, const std::string& what) {
  const std::u32string points = decode_utf8(text, what);
  return std::all_of(points.begin(), points.end(), [](char32_t point) {
    const bool separator = point >= 0x1c && point <= 0x1f;  // which Unicode does not call white space
    return separator || u_isUWhiteSpace(static_cast<UChar32>(point));
  });
}

}  // namespace dnd_fast
