// Small arrays that host and backend share, and graphs of the operations that work on them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace dultra {

// Host memory with a device mirror: an operation that is given an address in it works on the mirror, and reads sizes
// (offsets) from the host's side. So a whole step needs one upload and one download. One user at a time.
//
// This class itself is the exchange of a backend that works on host memory: the memory is its own mirror, and there are
// no graphs.
class Exchange {
 public:
  virtual ~Exchange() = default;

  // Whether `run` keeps graphs, so that few shapes are better than small ones.
  virtual bool records() const { return false; }
  // Host memory of at least `bytes`, aligned to kAlignment; contents are undefined. It moves when more is asked for
  // than ever before, and all graphs end then. Throws OUT_OF_MEMORY.
  virtual uint8_t* reserve(size_t bytes) {
    if (memory_.size() * sizeof(Line) < bytes) memory_.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
    return reinterpret_cast<uint8_t*>(memory_.data());
  }
  // Bytes [begin, end) to the mirror; queued.
  virtual void send(size_t /*begin*/, size_t /*end*/) {}
  // Bytes [begin, end) from the mirror; waits for them, and so for every operation before.
  virtual void receive(size_t /*begin*/, size_t /*end*/) {}

  // Does what `operations` does: operations of the backend on memory that stays where it is, with nothing read back in
  // between. Called when the same launches (kernels, shapes, scalars, addresses) were run twice before, it may only
  // walk through `operations` to see what they are, and launch the graph that it captured then.
  virtual void run(const std::function<void()>& operations) {
    ++counts_.direct;
    operations();
  }
  // All graphs end: memory that they work on has moved.
  virtual void forget() {}

  // How often `run` ran the operations directly, captured a graph of them, and launched one; and graphs held.
  struct Counts {
    int64_t direct = 0, recorded = 0, repeated = 0, held = 0;
  };
  const Counts& counts() const { return counts_; }

  static constexpr size_t kAlignment = 256;

 protected:
  Counts counts_;

 private:
  struct alignas(kAlignment) Line {
    uint8_t bytes[kAlignment];
  };
  std::vector<Line> memory_;
};

// Numbers of the host that operations read: they lie in memory of their own, or once `place` was called in an Exchange.
template <class T>
class HostArray {
 public:
  HostArray() = default;
  HostArray(std::vector<T> values) : values_(std::move(values)) {}  // NOLINT: meant to convert

  // What an operation is given. Null where there are none.
  const T* data() const { return placed_ ? placed_ : values_.empty() ? nullptr : values_.data(); }
  // A copy of the numbers is at `at`, which lives as long as operations are given them. Ends with the next change.
  void place(const T* at) { placed_ = at; }

  const std::vector<T>& values() const { return values_; }
  size_t size() const { return values_.size(); }
  bool empty() const { return values_.empty(); }
  const T& operator[](size_t i) const { return values_[i]; }
  const T& front() const { return values_.front(); }
  const T& back() const { return values_.back(); }
  typename std::vector<T>::const_iterator begin() const { return values_.begin(); }
  typename std::vector<T>::const_iterator end() const { return values_.end(); }

  std::vector<T>& change() {
    placed_ = nullptr;
    return values_;
  }
  void push_back(const T& value) { change().push_back(value); }

 private:
  std::vector<T> values_;
  const T* placed_ = nullptr;
};

// Lays arrays out in an Exchange, one behind the other. Made without memory it only counts: the same calls on one that
// counts and then on one with that memory put everything in place.
class ExchangeLayout {
 public:
  ExchangeLayout() = default;
  explicit ExchangeLayout(uint8_t* memory) : memory_(memory) {}

  size_t bytes() const { return bytes_; }
  // Room for `count` numbers; null while counting, or where there are none.
  template <class T>
  T* room(size_t count) {
    T* at = memory_ && count ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ += (count * sizeof(T) + kPiece - 1) / kPiece * kPiece;
    return at;
  }
  template <class T>
  T* copy(const std::vector<T>& values) {
    T* at = room<T>(values.size());
    for (size_t i = 0; at && i < values.size(); ++i) at[i] = values[i];
    return at;
  }
  template <class T>
  void put(HostArray<T>& array) {
    const T* at = copy(array.values());
    if (memory_) array.place(at);
  }

 private:
  static constexpr size_t kPiece = 64;  // of any type's alignment, and lines that arrays do not share
  uint8_t* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace dultra
