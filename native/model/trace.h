// DULTRA_TRACE=norms|values: one line on stderr for each activation of a forward pass, so that two backends, or two
// versions, can be compared line by line.
#pragma once
#include "model/context.h"

namespace dultra {

// Whether DULTRA_TRACE is set. Read once.
bool is_tracing();
void trace_activation(const ForwardContext& context, const char* name, size_t layer, ConstArray x, int64_t rows,
                      int64_t width);

// x (rows, width) of block `layer` (planner blocks follow the base model's). Prints
//   trace <layer> <name> <rows>x<width> <dtype> norm=<L2 norm> hash=<of the fp32 values>
// and with "values" the first numbers of every row. Nothing where DULTRA_TRACE is not set.
inline void trace(const ForwardContext& context, const char* name, size_t layer, ConstArray x, int64_t rows,
                  int64_t width) {
  if (is_tracing()) trace_activation(context, name, layer, x, rows, width);
}

}  // namespace dultra
