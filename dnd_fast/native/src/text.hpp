/// Unicode text: UTF-8 in and out, and white space as Python knows it.
#pragma once

#include <unicode/umachine.h>

#include <string>
#include <string_view>

namespace dnd_fast {

/// The code points of a UTF-8 text. Throws Error, which calls the text `what`, where it is broken.
std::u32string decode_utf8(std::string_view text, const std::string& what);

/// Append a code point in UTF-8.
void append_utf8(std::string& text, UChar32 point);

/// Whether str.strip() leaves nothing of a UTF-8 text. Throws Error as decode_utf8.
bool is_blank(std::string_view text, const std::string& what);

}  // namespace dnd_fast
