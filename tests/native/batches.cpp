/// batches GENERATOR FOLDER: three tasks of the tests in one call, from three threads at once.
#include <atomic>
#include <iostream>
#include <thread>

#include "dnd_fast/generator.hpp"

namespace {

std::string repeated(const std::string& text, int times) {
  std::string whole;
  while (times-- > 0) whole += text;
  return whole;
}

}  // namespace

int main(int, char** arguments) {
  const auto generator = dnd_fast::Generator::load(arguments[1]);
  const std::vector<std::string> prompts = {"reverse rice", "echo the tea in oak, reverses!",
                                            repeated("count fig ", 12), "oak", repeated("rice ", 30)};
  std::vector<std::vector<std::string>> tasks;
  for (std::ptrdiff_t i = 0; i < 3; ++i) tasks.emplace_back(prompts.begin() + i, prompts.begin() + i + 3);
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&, thread] {
      try {
        const auto adapters = generator.generate_batch(tasks);
        for (std::size_t task = 0; task < adapters.size(); ++task) {
          const std::string name = std::to_string(thread) + "-" + std::to_string(task);
          adapters[task].save(std::filesystem::path(arguments[2]) / name);
        }
      } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failures;
}
