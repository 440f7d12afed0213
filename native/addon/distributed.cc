// Processes of one job: MPI's beginning and end, and bytes that JavaScript exchanges.
#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"
#include "distributed/mpi.h"
#include "distributed/nccl.h"

namespace dultra {
namespace addon {

namespace {

using Bytes = std::vector<uint8_t>;

Bytes to_bytes(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    type_error(value.Env(), "bytes", "a Uint8Array");
  const auto array = value.As<Napi::Uint8Array>();
  return Bytes(array.Data(), array.Data() + array.ElementLength());
}

// The bytes of every rank, whose lengths may differ.
std::vector<Bytes> gather(Communicator& ranks, Bytes own) {
  const size_t rank = size_t(ranks.rank()), size = size_t(ranks.size());
  ranks.agree(Shared::kGather, 0);
  std::vector<int64_t> lengths(size, 0);
  lengths[rank] = int64_t(own.size());
  ranks.all_reduce_sum(lengths.data(), int64_t(size));
  std::vector<Bytes> all(size);
  all[rank] = std::move(own);
  for (size_t from = 0; from < size; ++from) {
    all[from].resize(size_t(lengths[from]));
    ranks.broadcast(all[from].data(), all[from].size(), int(from));
  }
  return all;
}

Napi::Value open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<std::string> files = to_strings(info[0], "files");
  const MpiLibrary found = guarded(env, [&] { return open_mpi(files); });
  Napi::Object out = Napi::Object::New(env);
  out.Set("file", found.file);
  out.Set("version", found.version);
  out.Set("abi", found.abi);
  out.Set("reason", found.reason);
  return out;
}

Napi::Value find_nccl(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const NcclLibrary found = guarded(env, open_nccl);
  Napi::Object out = Napi::Object::New(env);
  out.Set("file", found.file);
  out.Set("version", found.version);
  out.Set("reason", found.reason);
  return out;
}

// On the thread that calls it, which MPI takes for its main thread.
Napi::Value start(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [] { start_mpi(); });
  return info.Env().Undefined();
}

Napi::Value group_of(Napi::Env env) {
  const auto ranks = world();
  Napi::Object out = Napi::Object::New(env);
  out.Set("rank", ranks->rank());
  out.Set("size", ranks->size());
  return out;
}

Napi::Value group(const Napi::CallbackInfo& info) { return group_of(info.Env()); }

Napi::Uint8Array to_array(Napi::Env env, const Bytes& bytes) {
  auto array = Napi::Uint8Array::New(env, bytes.size());
  if (!bytes.empty()) std::memcpy(array.Data(), bytes.data(), bytes.size());
  return array;
}

Napi::Value gather_bytes(const Napi::CallbackInfo& info) {
  auto own = std::make_shared<Bytes>(to_bytes(info[0]));
  return Job<std::vector<Bytes>>::start(
      info.Env(), [own] { return gather(*world(), std::move(*own)); },
      [](Napi::Env env, std::vector<Bytes>& all) -> Napi::Value {
        auto out = Napi::Array::New(env, all.size());
        for (uint32_t i = 0; i < all.size(); ++i) out.Set(i, to_array(env, all[i]));
        return out;
      });
}

struct Nothing {};

Napi::Value barrier(const Napi::CallbackInfo& info) {
  return Job<Nothing>::start(
      info.Env(),
      [] {
        world()->agree(Shared::kBarrier, 0);
        return Nothing{};
      },
      [](Napi::Env env, Nothing&) -> Napi::Value { return env.Undefined(); });
}

Napi::Value split(const Napi::CallbackInfo& info) {
  const int color = int(to_number(info[0], "color"));
  return Job<Nothing>::start(
      info.Env(),
      [color] {
        split_world(color);
        return Nothing{};
      },
      [](Napi::Env env, Nothing&) -> Napi::Value { return group_of(env); });
}

Napi::Value join(const Napi::CallbackInfo& info) {
  join_world();
  return group_of(info.Env());
}

Napi::Value post(const Napi::CallbackInfo& info) {
  const int to = int(to_number(info[0], "to"));
  Bytes bytes = to_bytes(info[1]);
  guarded(info.Env(), [&] { post_message(to, std::move(bytes)); });
  return info.Env().Undefined();
}

Napi::Value poll(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Polled polled = guarded(env, [] { return poll_messages(); });
  Napi::Object out = Napi::Object::New(env);
  out.Set("from", polled.from);
  out.Set("bytes", to_array(env, polled.bytes));
  out.Set("unsent", double(polled.unsent));
  return out;
}

Napi::Value finalize(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [] { finalize_mpi(); });
  return info.Env().Undefined();
}

Napi::Value abort(const Napi::CallbackInfo& info) {
  const int code = int(to_number(info[0], "exitCode"));
  guarded(info.Env(), [&] { abort_mpi(code); });
  return info.Env().Undefined();
}

}  // namespace

void init_distributed(Napi::Env env, Napi::Object exports) {
  exports.Set("openMpi", Napi::Function::New(env, open));
  exports.Set("openNccl", Napi::Function::New(env, find_nccl));
  exports.Set("startMpi", Napi::Function::New(env, start));
  exports.Set("group", Napi::Function::New(env, group));
  exports.Set("gatherBytes", Napi::Function::New(env, gather_bytes));
  exports.Set("barrier", Napi::Function::New(env, barrier));
  exports.Set("split", Napi::Function::New(env, split));
  exports.Set("join", Napi::Function::New(env, join));
  exports.Set("post", Napi::Function::New(env, post));
  exports.Set("poll", Napi::Function::New(env, poll));
  exports.Set("finalizeMpi", Napi::Function::New(env, finalize));
  exports.Set("abortMpi", Napi::Function::New(env, abort));
}

}  // namespace addon
}  // namespace dultra
