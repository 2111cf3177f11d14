/// Prompts of a task: reading, checking and sampling them, as dnd_fast/text/prompts.py does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dnd_fast {

/// Throw Error unless there are prompts, none of them blank, all of them UTF-8.
void check_prompts(const std::vector<std::string>& prompts, const std::string& where);

/// The indices of `count` prompts out of `size`: those that Python's sample_prompts draws.
///
/// Without replacement where there are enough; else all, and more of them with replacement.
std::vector<std::size_t> sample(std::size_t size, std::size_t count, std::int64_t seed);

}  // namespace dnd_fast
