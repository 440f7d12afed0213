// What a sequence of operations would launch, as bytes: the key of its CUDA graph (CudaExchange::run).
#pragma once
#include <string>
#include <type_traits>

namespace dultra {
namespace cuda {

// Kernels with their grids and arguments, products and copies, byte for byte. Nothing that a launch depends on can be
// left out, because launches write the key themselves.
class LaunchKey {
 public:
  template <class... T>
  void add(const T&... values) {
    (append(values), ...);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  template <class T>
  void append(T value) {
    static_assert(std::is_trivially_copyable_v<T>, "compared byte by byte");
    // Padding must not make equal arguments differ. Without the builtin it may, which costs a capture, never a result.
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&value);
#endif
#endif
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }

  std::string bytes_;
};

// The key that this thread's operations write while they are planned, in place of queueing work; null: they queue it.
LaunchKey* planned_key();
void set_planned_key(LaunchKey* key);

}  // namespace cuda
}  // namespace dultra
