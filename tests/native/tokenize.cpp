/// tokenize FOLDER: texts from standard input, each after its length in bytes and a line break; of each
/// a line of ids to standard output.
#include <iostream>

#include "dnd_fast/generator.hpp"
#include "manifest.hpp"
#include "tokenizer.hpp"

int main(int, char** arguments) try {
  const auto manifest = dnd_fast::Manifest::load(arguments[1]);
  const dnd_fast::Tokenizer tokenizer(manifest.folder / "vocab.txt", manifest.tokenizer);
  std::size_t size = 0;
  while (std::cin >> size && std::cin.get() == '\n') {
    std::string text(size, '\0');
    std::cin.read(text.data(), static_cast<std::streamsize>(size));
    const auto ids = tokenizer.truncate(tokenizer.encode(text, "it"), manifest.length);
    for (const std::int64_t id : ids) std::cout << id << ' ';
    std::cout << '\n';
  }
  return 0;
} catch (const dnd_fast::Error& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
