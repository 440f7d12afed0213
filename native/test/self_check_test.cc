// The check that a device has to pass before it is used: right backends pass, and a wrong operation is named.
#include "backends/self_check.h"

#include <string>

#include "backends/cpu/cpu_backend.h"
#include "harness.h"

namespace dultra {
namespace test {
namespace {

class WrongNorm : public cpu::CpuBackend {
 public:
  WrongNorm() : CpuBackend(1, "", Compute::kF32) {}
  void do_rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps) override {
    CpuBackend::do_rmsnorm_forward(out, x, weight, m, c, eps);
    out.f32()[m * c - 1] *= 1.01f;
  }
};

class WrongDraw : public cpu::CpuBackend {
 public:
  WrongDraw() : CpuBackend(1, "", Compute::kF32) {}
  void do_sample_forward(const SampleArgs& args) override {
    CpuBackend::do_sample_forward(args);
    args.token[args.rows - 1] ^= 1;
  }
};

class NotANumber : public cpu::CpuBackend {
 public:
  NotANumber() : CpuBackend(1, "", Compute::kF32) {}
  void do_attention_forward(const AttentionArgs& args) override {
    CpuBackend::do_attention_forward(args);
    args.out.f32()[0] = NAN;
  }
};

// Of one head dimension alone.
class WrongGradient : public cpu::CpuBackend {
 public:
  WrongGradient() : CpuBackend(1, "", Compute::kF32) {}
  void do_attention_backward(const AttentionGradArgs& args) override {
    CpuBackend::do_attention_backward(args);
    if (args.forward.head_dim == 128) args.dk.f32()[5] += 0.1f;
  }
};

class WrongStep : public cpu::CpuBackend {
 public:
  WrongStep() : CpuBackend(1, "", Compute::kF32) {}
  void do_adamw_step(const AdamWArgs& args) override {
    AdamWArgs other = args;
    other.step = 1;
    CpuBackend::do_adamw_step(other);
  }
};

std::string refusal(Backend& device) {
  cpu::CpuBackend reference(1, "", Compute::kF32);
  try {
    check_device(device, reference);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kDeviceUnavailable, "code");
    return error.what();
  }
  return "";
}

DULTRA_TEST(self_check_passes_what_is_right) {
  for (int schedule = 1; schedule <= 3; ++schedule)
    for (Compute compute : {Compute::kF32, Compute::kBF16}) {
      if (!make_backend(1, "")->supports(compute)) continue;
      const auto device = make_backend(schedule, "", compute);
      CHECK(refusal(*device).empty(), "schedule ", schedule, " compute ", int(compute));
    }
}

DULTRA_TEST(self_check_names_what_is_wrong) {
  WrongNorm norm;
  WrongDraw draw;
  NotANumber number;
  WrongGradient gradient;
  WrongStep step;
  CHECK(refusal(norm).find("in rmsnorm_forward (fp32): they differ by 0.0") != std::string::npos, refusal(norm));
  CHECK(refusal(gradient).find("in attention_backward") != std::string::npos, refusal(gradient));
  CHECK(refusal(step).find("in adamw_step") != std::string::npos, refusal(step));
  CHECK(refusal(draw).find("in sample_forward") != std::string::npos, refusal(draw));
  CHECK(refusal(number).find("in attention_forward (fp32): they differ by inf") != std::string::npos, refusal(number));
}

}  // namespace
}  // namespace test
}  // namespace dultra
