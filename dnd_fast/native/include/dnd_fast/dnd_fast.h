/* The same for C, and for every language that calls C.
 *
 * Functions that return a pointer return NULL on an error, those that return an int -1;
 * dnd_fast_error() then says what was wrong. Texts are UTF-8. A generator may be used from several
 * threads. A folder made by `dnd-fast export` holds compiled code: load only those that you trust. */
#ifndef DND_FAST_H
#define DND_FAST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dnd_fast_generator dnd_fast_generator;
typedef struct dnd_fast_adapter dnd_fast_adapter;

/* One LoRA matrix, row by row; owned by its adapter. */
typedef struct {
  const char* name;
  int64_t rows, columns;
  const float* values;
} dnd_fast_tensor;

dnd_fast_generator* dnd_fast_load(const char* folder);
void dnd_fast_free(dnd_fast_generator* generator);

dnd_fast_adapter* dnd_fast_generate(const dnd_fast_generator* generator, const char* const* prompts,
                                    size_t count, int64_t seed);
void dnd_fast_adapter_free(dnd_fast_adapter* adapter);

size_t dnd_fast_adapter_size(const dnd_fast_adapter* adapter); /* number of its tensors */
int dnd_fast_adapter_tensor(const dnd_fast_adapter* adapter, size_t index, dnd_fast_tensor* tensor);
int dnd_fast_adapter_save(const dnd_fast_adapter* adapter, const char* folder);

/* What the last failed call of this thread was about; "" before the first. */
const char* dnd_fast_error(void);

#ifdef __cplusplus
}
#endif
#endif
