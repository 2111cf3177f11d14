#include <new>

#include "dnd_fast/dnd_fast.h"
#include "dnd_fast/generator.hpp"

struct dnd_fast_generator {
  dnd_fast::Generator generator;
};

struct dnd_fast_adapter {
  dnd_fast::Adapter adapter;
};

namespace {

thread_local std::string last_error;

/// What `call` returns; where it throws, `failed`, and the message is kept.
template <class Result, class Call>
Result guarded(Result failed, const Call& call) noexcept {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    last_error = "out of memory.";  // short enough to need no memory of its own
  } catch (const std::exception& error) {
    last_error = error.what();
  }
  return failed;
}

template <class Object>
Object* required(Object* pointer, const char* name) {
  if (!pointer) throw dnd_fast::Error(std::string(name) + " is NULL.");
  return pointer;
}

}  // namespace

dnd_fast_generator* dnd_fast_load(const char* folder) {
  return guarded<dnd_fast_generator*>(nullptr, [&] {
    return new dnd_fast_generator{dnd_fast::Generator::load(required(folder, "folder"))};
  });
}

void dnd_fast_free(dnd_fast_generator* generator) { delete generator; }

dnd_fast_adapter* dnd_fast_generate(const dnd_fast_generator* generator, const char* const* prompts,
                                    size_t count, int64_t seed) {
  return guarded<dnd_fast_adapter*>(nullptr, [&] {
    std::vector<std::string> texts;
    for (size_t i = 0; i < count; ++i) {
      texts.emplace_back(required(required(prompts, "prompts")[i], "a prompt"));
    }
    const dnd_fast::Generator& loaded = required(generator, "generator")->generator;
    return new dnd_fast_adapter{loaded.generate(texts, seed)};
  });
}

void dnd_fast_adapter_free(dnd_fast_adapter* adapter) { delete adapter; }

size_t dnd_fast_adapter_size(const dnd_fast_adapter* adapter) {
  return adapter ? adapter->adapter.tensors.size() : 0;
}

int dnd_fast_adapter_tensor(const dnd_fast_adapter* adapter, size_t index, dnd_fast_tensor* tensor) {
  return guarded(-1, [&] {
    if (index >= dnd_fast_adapter_size(adapter)) {
      throw dnd_fast::Error("tensor " + std::to_string(index) + " does not exist: the adapter has " +
                            std::to_string(dnd_fast_adapter_size(adapter)) + ".");
    }
    const dnd_fast::Tensor& found = adapter->adapter.tensors[index];
    *required(tensor, "tensor") = {found.name.c_str(), found.shape[0], found.shape[1],
                                   found.values.data()};
    return 0;
  });
}

int dnd_fast_adapter_save(const dnd_fast_adapter* adapter, const char* folder) {
  return guarded(-1, [&] {
    required(adapter, "adapter")->adapter.save(required(folder, "folder"));
    return 0;
  });
}

const char* dnd_fast_error(void) { return last_error.c_str(); }
