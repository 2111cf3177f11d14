/// load_folders FOLDER…: use each as a generator, and say in a line what came of it.
#include <iostream>

#include "dnd_fast/generator.hpp"

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    try {
      dnd_fast::Generator::load(arguments[i]).generate({"echo"});
      std::cout << "generated\n";
    } catch (const dnd_fast::Error& error) {
      std::cout << error.what() << "\n";
    }
  }
  return 0;
}
