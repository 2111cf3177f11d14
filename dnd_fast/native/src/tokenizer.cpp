#include "tokenizer.hpp"

#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <utility>

#include "dnd_fast/generator.hpp"
#include "files.hpp"
#include "text.hpp"

namespace dnd_fast {
namespace {

enum class Kind { kControl, kMark, kPunctuation, kOther };

/// What kind of character the tokenizers library takes a code point for.
///
/// Its tables are those of Unicode 8.0: to it, later characters are unassigned, and some earlier ones
/// are what they were then.
Kind kind_of(UChar32 point) {
  switch (point) {
    case 0x1885:  // Mongolian letters, now marks
    case 0x1886:
    case 0xa9bd:  // a Javanese sign, now a nonspacing one
      return Kind::kOther;
    case 0x1734:  // a Hanunoo sign, now a spacing one
      return Kind::kMark;
    case 0x166d:   // Canadian syllabics' chi sign, now a symbol
    case 0x111c9:  // a Sharada mark, punctuation then
      return Kind::kPunctuation;
  }
  UVersionInfo age;
  u_charAge(point, age);
  if (age[0] > 8) return Kind::kOther;
  const std::uint32_t category = U_GET_GC_MASK(point);
  if (category & (U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK)) return Kind::kControl;
  if (category & U_GC_MN_MASK) return Kind::kMark;
  if (category & U_GC_P_MASK) return Kind::kPunctuation;
  return Kind::kOther;
}

bool is_punctuation(UChar32 point) {
  // Of ASCII also what Unicode calls a symbol.
  if (point < 0x80) return point > ' ' && point != 0x7f && !u_isalnum(point);
  return kind_of(point) == Kind::kPunctuation;
}

bool is_chinese(UChar32 point) {
  static constexpr UChar32 kBlocks[][2] = {
      {0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},   {0x20000, 0x2a6df},
      {0x2a700, 0x2b73f}, {0x2b740, 0x2b81f}, {0x2b920, 0x2ceaf}, {0x2f800, 0x2fa1f}};
  return std::any_of(std::begin(kBlocks), std::end(kBlocks),
                     [=](const auto& block) { return block[0] <= point && point <= block[1]; });
}

void append_lowercase(std::u32string& text, UChar32 point) {
  switch (point) {
    case 0x130:  // the one character that has two in lower case
      text += U"i\u0307";
      return;
    case 0xa7cb:  // Latin letters of Unicode 16, later than some ICU
      text += U'\u0264';
      return;
    case 0xa7dc:
      text += U'\u019b';
      return;
  }
  text += static_cast<char32_t>(u_tolower(point));
}

const icu::Normalizer2& canonical_decomposition() {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = icu::Normalizer2::getNFDInstance(status);
  if (U_FAILURE(status)) throw Error(std::string("ICU has no data: ") + u_errorName(status) + ".");
  return *normalizer;
}

/// Canonically decomposed. The order of marks is left as it is: they go, or make a word unknown.
std::u32string decompose(UChar32 point) {
  icu::UnicodeString decomposition;
  if (!canonical_decomposition().getDecomposition(point, decomposition)) {
    return {static_cast<char32_t>(point)};
  }
  std::u32string points;
  for (std::int32_t i = 0; i < decomposition.length(); i = decomposition.moveIndex32(i, 1)) {
    points += static_cast<char32_t>(decomposition.char32At(i));
  }
  return points;
}

}  // namespace

Tokenizer::Tokenizer(const std::filesystem::path& vocabulary, TokenizerSettings settings)
    : settings_(std::move(settings)) {
  const std::string content = read_file(vocabulary);
  std::int64_t count = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    pieces_.emplace(content.substr(begin, end - begin), count++);
    begin = end + 1;
  }
  if (count > settings_.embeddings) {
    throw Error(vocabulary.string() + " has " + std::to_string(count) +
                " tokens, more than the encoder has embeddings, " +
                std::to_string(settings_.embeddings) + ".");
  }
  for (const auto& [text, id] : settings_.special_tokens) {
    special_.emplace_back(decode_utf8(text, "a special token"), id);
  }
  std::sort(special_.begin(), special_.end(), [](const auto& a, const auto& b) {
    return a.first.size() > b.first.size();
  });
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, const std::string& what) const {
  const std::u32string points = decode_utf8(text, what);
  const std::u32string_view view = points;
  std::vector<std::int64_t> ids = {settings_.start};
  std::size_t plain = 0;  // where what is not special has begun
  for (std::size_t at = 0; at < view.size();) {
    const auto found = std::find_if(special_.begin(), special_.end(), [&](const auto& token) {
      return view.compare(at, token.first.size(), token.first) == 0;
    });
    if (found == special_.end()) {
      ++at;
      continue;
    }
    encode_plain(view.substr(plain, at - plain), ids);
    ids.push_back(found->second);
    plain = at += found->first.size();
  }
  encode_plain(view.substr(plain), ids);
  ids.push_back(settings_.end);
  return ids;
}

std::vector<std::int64_t> Tokenizer::truncate(std::vector<std::int64_t> ids,
                                              std::size_t length) const {
  if (ids.size() <= length) return ids;
  const auto excess = static_cast<std::ptrdiff_t>(ids.size() - length);
  const auto content = static_cast<std::ptrdiff_t>(ids.size()) - 2;
  const auto removed = std::min(excess, content);
  const auto begin = settings_.keep_right ? ids.begin() + 1 : ids.end() - 1 - removed;
  ids.erase(begin, begin + removed);
  ids.resize(length);
  return ids;
}

void Tokenizer::encode_plain(std::u32string_view text, std::vector<std::int64_t>& ids) const {
  Word word;
  for (const char32_t original : text) {
    for (const char32_t point : normalize(original)) {
      const bool space = u_isUWhiteSpace(static_cast<UChar32>(point));
      const bool alone = !space && is_punctuation(static_cast<UChar32>(point));
      if (space || alone) append_word(word, ids);
      if (space) continue;
      append_utf8(word.text, static_cast<UChar32>(point));
      ++word.characters;
      if (alone) append_word(word, ids);
    }
  }
  append_word(word, ids);
}

/// What a code point becomes before text is cut into words: nothing, itself, or others.
std::u32string Tokenizer::normalize(char32_t original) const {
  const auto point = static_cast<UChar32>(original);
  std::u32string points = {original};
  if (settings_.clean_text) {
    if (point == '\t' || point == '\n' || point == '\r') return U" ";
    if (point == 0xfffd || kind_of(point) == Kind::kControl) return {};
    if (u_isUWhiteSpace(point)) return U" ";
  }
  if (settings_.strip_accents) {
    points = decompose(point);
    points.erase(std::remove_if(points.begin(), points.end(),
                                [](char32_t each) {
                                  return kind_of(static_cast<UChar32>(each)) == Kind::kMark;
                                }),
                 points.end());
  }
  if (settings_.lowercase) {
    std::u32string lower;
    for (const char32_t each : points) append_lowercase(lower, static_cast<UChar32>(each));
    points = std::move(lower);
  }
  if (settings_.chinese_characters && is_chinese(point)) return U" " + points + U" ";
  return points;
}

/// Cut a word into the longest pieces there are, from its beginning; unknown where one is missing.
void Tokenizer::append_word(Word& word, std::vector<std::int64_t>& ids) const {
  const Word whole = std::exchange(word, {});
  if (whole.text.empty()) return;
  const std::size_t first = ids.size();
  bool known = whole.characters <= settings_.max_word_length;
  for (std::size_t begin = 0; known && begin < whole.text.size();) {
    std::string piece = (begin ? settings_.continuation : "") + whole.text.substr(begin);
    const std::size_t prefix = piece.size() - (whole.text.size() - begin);
    auto found = pieces_.find(piece);
    while (found == pieces_.end() && piece.size() > prefix + 1) {
      piece.pop_back();
      found = pieces_.find(piece);
    }
    known = found != pieces_.end();
    if (!known) break;
    ids.push_back(found->second);
    begin += piece.size() - prefix;
  }
  if (known) return;
  ids.resize(first);
  ids.push_back(settings_.unknown);
}

}  // namespace dnd_fast
