// Work on a libuv worker thread with a promise for its result. The only place where a C++ exception becomes a
// JavaScript error.
#pragma once
#include <napi.h>

#include <functional>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "ops/check.h"

namespace dultra {
namespace addon {

inline Napi::Error make_error(Napi::Env env, ErrorCode code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Value().Set("code", error_code_name(code));
  return error;
}

// Runs `body` and rethrows what it throws as a JavaScript error; for short synchronous calls.
template <typename Body>
auto guarded(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw make_error(env, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    throw make_error(env, ErrorCode::kOutOfMemory, "out of memory");
  }
}

template <typename T>
class Job final : public Napi::AsyncWorker {
 public:
  using Work = std::function<T()>;
  using Convert = std::function<Napi::Value(Napi::Env, T&)>;

  // `work` runs on another thread and must not touch JavaScript; `convert` makes the promise's value afterwards.
  static Napi::Value start(Napi::Env env, Work work, Convert convert) {
    auto* job = new Job(env, std::move(work), std::move(convert));
    const Napi::Value promise = job->deferred_.Promise();
    job->Queue();
    return promise;
  }

 private:
  Job(Napi::Env env, Work work, Convert convert)
      : Napi::AsyncWorker(env, "dultra"),
        work_(std::move(work)),
        convert_(std::move(convert)),
        deferred_(Napi::Promise::Deferred::New(env)) {}

  void Execute() override {
    try {
      result_ = work_();
    } catch (const Error& error) {
      fail(error.code(), error.what());
    } catch (const std::bad_alloc&) {
      fail(ErrorCode::kOutOfMemory, "out of memory");
    } catch (const std::exception& error) {
      fail(ErrorCode::kInternal, error.what());
    }
    // Releases what the work kept alive on this thread: freeing gigabytes would block the event loop.
    work_ = nullptr;
  }
  void OnOK() override {
    Napi::HandleScope scope(Env());
    try {
      deferred_.Resolve(convert_(Env(), *result_));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }
  void OnError(const Napi::Error& error) override {
    Napi::HandleScope scope(Env());
    deferred_.Reject(make_error(Env(), code_, error.Message()).Value());
  }
  void fail(ErrorCode code, const std::string& message) {
    code_ = code;
    SetError(message.empty() ? error_code_name(code) : message);
  }

  Work work_;
  Convert convert_;
  Napi::Promise::Deferred deferred_;
  std::optional<T> result_;
  ErrorCode code_ = ErrorCode::kInternal;
};

}  // namespace addon
}  // namespace dultra
