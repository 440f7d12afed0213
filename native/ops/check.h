// Errors of the native core. Every failure is an Error with a code from a closed list; nothing here prints, exits or
// aborts.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace dultra {

enum class ErrorCode {
  kInvalidArgument,  // a caller's mistake: shapes, ranges, ids
  kOutOfMemory,
  kDeviceUnavailable,
  kBadCheckpoint,
  kNoPlanner,
  kNonFinite,
  kDisposed,
  kAborted,
  kInternal,
};

// The name that JavaScript sees as `error.code`.
inline const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "INVALID_ARGUMENT";
    case ErrorCode::kOutOfMemory: return "OUT_OF_MEMORY";
    case ErrorCode::kDeviceUnavailable: return "DEVICE_UNAVAILABLE";
    case ErrorCode::kBadCheckpoint: return "BAD_CHECKPOINT";
    case ErrorCode::kNoPlanner: return "NO_PLANNER";
    case ErrorCode::kNonFinite: return "NON_FINITE";
    case ErrorCode::kDisposed: return "DISPOSED";
    case ErrorCode::kAborted: return "ABORTED";
    case ErrorCode::kInternal: return "INTERNAL";
  }
  return "INTERNAL";
}

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string message) : std::runtime_error(std::move(message)), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws INVALID_ARGUMENT with `message` unless `ok`.
inline void check_argument(bool ok, const std::string& message) {
  if (!ok) throw Error(ErrorCode::kInvalidArgument, message);
}

}  // namespace dultra
