/// The safetensors format, for float32: eight bytes that count the header's, a header in JSON, numbers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dnd_fast/generator.hpp"

namespace dnd_fast {

/// What goes before the numbers of `order`, with their SHA-256; byte by byte what Python writes.
std::string safetensors_header(const std::vector<const Tensor*>& order);

/// The order that the numbers of a file lie in: by name.
std::vector<const Tensor*> safetensors_order(const std::vector<Tensor>& tensors);

/// The tensors in a file's content. Throws Error, which calls the file `where`, unless the header is
/// sound, the tensors fill the rest exactly, without overlap or gap, and have the SHA-256 that the
/// header says, if it says one.
std::vector<Tensor> parse_safetensors(std::string_view content, const std::string& where);

}  // namespace dnd_fast
