// The public operations: each checks its arguments, then calls the backend's own.
#include "ops/backend.h"

#include "ops/check_args.h"

namespace dultra {

#define DULTRA_OP(result, name, parameters, arguments) \
  result Backend::name parameters { return do_##name arguments; }
#define DULTRA_CHECKED_OP(result, name, parameters, arguments) \
  result Backend::name parameters {                            \
    ArgumentChecks{*this}.name arguments;                      \
    return do_##name arguments;                                \
  }
#include "ops/ops.inc"

}  // namespace dultra
