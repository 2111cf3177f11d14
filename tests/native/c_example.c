/* c_example GENERATOR ADAPTER PROMPT…: the C interface, from C. */
#include <stdio.h>

#include "dnd_fast/dnd_fast.h"

static int fail(void) {
  fprintf(stderr, "error: %s\n", dnd_fast_error());
  return 1;
}

int main(int count, char** arguments) {
  if (count < 3) return 2;
  dnd_fast_generator* generator = dnd_fast_load(arguments[1]);
  if (!generator) return fail();
  const char* const* prompts = (const char* const*)arguments + 3;
  dnd_fast_adapter* adapter = dnd_fast_generate(generator, prompts, (size_t)count - 3, 0);
  dnd_fast_free(generator);
  if (!adapter) return fail();
  for (size_t i = 0; i < dnd_fast_adapter_size(adapter); ++i) {
    dnd_fast_tensor tensor;
    if (dnd_fast_adapter_tensor(adapter, i, &tensor)) return fail();
    printf("%s %ld %ld %g\n", tensor.name, (long)tensor.rows, (long)tensor.columns, tensor.values[0]);
  }
  const int saved = dnd_fast_adapter_save(adapter, arguments[2]);
  dnd_fast_adapter_free(adapter);
  return saved ? fail() : 0;
}
