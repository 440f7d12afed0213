// The cases that the reference implementation recorded (test/fixtures/golden, see its README.md): forward passes, and
// every step of generations without a cache, each from the tokens that were recorded before it. test/golden/runner.cjs
// replays them through the public API; here they run without Node, so on whatever device these tests run on. Training
// cases and those with caches are replayed there alone.
//
// In fp32: decisions equal, numbers within what the case states. In bf16 (weights of the fixtures are exact in it,
// activations are rounded): states and logits of forward passes within the case's relative L2 norm for bf16; of
// generations 95 % of the tokens, since a decision may be as close as 1e-3 (the reference's own bf16 run has 98.6 % of
// the argmaxes).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "harness.h"
#include "json.h"
#include "model/forward.h"
#include "session.h"

namespace dultra {
namespace test {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(path.string() + " cannot be read");
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// A tensor of a fixture; integers and booleans are exact as doubles.
struct Recorded {
  std::vector<int64_t> shape;
  std::vector<double> data;
  double operator[](int64_t i) const { return data.at(size_t(i)); }
};
using RecordedTensors = std::map<std::string, Recorded>;

template <class T>
void append(std::vector<double>* to, const char* from, size_t bytes) {
  for (size_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
    T value;
    std::memcpy(&value, from + i, sizeof value);
    to->push_back(double(value));
  }
}

struct Header {
  Json json;
  size_t begin;  // of the data
};
Header header_of(const std::string& file) {
  uint64_t length = 0;
  if (file.size() < 8) throw std::runtime_error("safetensors: too short");
  std::memcpy(&length, file.data(), 8);
  if (length > file.size() - 8) throw std::runtime_error("safetensors: the header is cut off");
  return {Json::parse(file.substr(8, size_t(length))), 8 + size_t(length)};
}

RecordedTensors read_tensors(const fs::path& path) {
  const std::string file = read_file(path);
  const Header header = header_of(file);
  RecordedTensors out;
  for (const auto& [name, entry] : header.json.object) {
    if (name == "__metadata__") continue;
    Recorded tensor;
    for (const Json& n : entry["shape"].array) tensor.shape.push_back(int64_t(n.number));
    const auto& range = entry["data_offsets"].array;
    const size_t begin = header.begin + size_t(range.at(0).number),
                 bytes = size_t(range.at(1).number - range.at(0).number);
    if (begin + bytes > file.size()) throw std::runtime_error(path.string() + ": " + name + " ends beyond the file");
    const std::string& dtype = entry["dtype"].string;
    const char* data = file.data() + begin;
    if (dtype == "F32")
      append<float>(&tensor.data, data, bytes);
    else if (dtype == "F64")
      append<double>(&tensor.data, data, bytes);
    else if (dtype == "I32")
      append<int32_t>(&tensor.data, data, bytes);
    else if (dtype == "I64")
      append<int64_t>(&tensor.data, data, bytes);
    else if (dtype == "BOOL")
      append<uint8_t>(&tensor.data, data, bytes);
    else
      throw std::runtime_error(path.string() + ": dtype " + dtype);
    out[name] = std::move(tensor);
  }
  return out;
}

// A fixture's model; tensors of `overrides`, where there are any, in place of its own.
std::shared_ptr<Model> load(const fs::path& folder, const fs::path& overrides, Compute compute) {
  const Json json = Json::parse(read_file(folder / "config.json"));
  std::vector<std::string> files{(folder / "model.safetensors").u8string()};
  if (!overrides.empty()) files.push_back(overrides.u8string());
  std::map<std::string, TensorRef> refs;
  for (size_t f = 0; f < files.size(); ++f) {
    const Header header = header_of(read_file(fs::u8path(files[f])));
    for (const auto& [name, entry] : header.json.object) {
      if (name == "__metadata__") continue;
      if (entry["dtype"].string != "F32") throw std::runtime_error(files[f] + ": expected fp32 weights");
      TensorRef ref;
      ref.name = name;
      ref.file = int(f);
      for (const Json& n : entry["shape"].array) ref.shape.push_back(int64_t(n.number));
      ref.begin = header.begin + uint64_t(entry["data_offsets"].array.at(0).number);
      ref.end = header.begin + uint64_t(entry["data_offsets"].array.at(1).number);
      refs[name] = ref;
    }
  }
  ModelConfig config;
  config.hidden = int64_t(json["d_model"].number);
  config.heads = int(json["n_heads"].number);
  config.kv_heads = int(json["n_kv_heads"].number_or(config.heads));
  config.head_dim = int(config.hidden / config.heads);
  config.layers = int(json["n_layers"].number);
  config.mlp_hidden = int64_t(json["mlp_hidden_size"].number);
  config.embedding_size = int64_t(json["embedding_size"].number_or(json["vocab_size"].number));
  config.max_sequence_length = int64_t(json["max_sequence_length"].number);
  config.rope = {float(json["rope_theta"].number_or(10000)), config.head_dim};
  config.rms_norm_eps = float(json["rms_norm_eps"].number_or(1e-5));
  config.weight_tying = json["weight_tying"].number_or(0) != 0;
  config.mask_token = int32_t(json["mask_token_id"].number);
  config.planner.present = refs.count("mask_linear.weight") != 0;
  config.planner.layers = int(json["num_head_layers"].number_or(1));
  config.planner.use_adaln = json["use_adaln"].number_or(1) != 0;
  config.planner.use_mask_embeddings = json["use_mask_embeddings"].number_or(1) != 0;
  std::vector<TensorRef> list;
  for (const auto& [name, ref] : refs) list.push_back(ref);
  const Checkpoint checkpoint(files, list);
  return std::make_shared<Model>(config, make_model_backend(2, compute), checkpoint, WeightOptions(), nullptr);
}

struct Case {
  std::string name;
  Json json;
  RecordedTensors inputs, expected;
  Compute compute;
  std::shared_ptr<Model> model;

  std::string where() const { return name + (compute == Compute::kBF16 ? " in bf16" : " in fp32"); }
  const Recorded& wanted(const std::string& tensor) const {
    const auto found = expected.find(tensor);
    if (found == expected.end()) throw std::runtime_error(name + ": expected no tensor " + tensor);
    return found->second;
  }
};

// Largest deviation of each quantity, for the line that DULTRA_VERBOSE asks for.
using Deviations = std::map<std::string, double>;
void print(const Case& c, const Deviations& deviations) {
  if (!std::getenv("DULTRA_VERBOSE") || deviations.empty()) return;
  std::string line = "  " + c.where() + ":";
  for (const auto& [what, value] : deviations) line += text(" ", what, " ", value);
  std::printf("%s\n", line.c_str());
}

// All of a case of a kind, with the device's arithmetics.
void for_each_case(const std::string& kind, const std::function<void(const Case&)>& body) {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(DULTRA_GOLDEN))
    if (fs::exists(entry.path() / "case.json")) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  int seen = 0;
  for (const fs::path& folder : folders) {
    Case c;
    c.name = folder.filename().string();
    c.json = Json::parse(read_file(folder / "case.json"));
    if (c.json["kind"].string != kind) continue;
    c.inputs = read_tensors(folder / "inputs.safetensors");
    c.expected = read_tensors(folder / "expected.safetensors");
    const Json& overrides = c.json["weight_overrides"];
    for (Compute compute : {Compute::kF32, Compute::kBF16}) {
      if (!make_model_backend(1)->supports(compute)) continue;
      c.compute = compute;
      c.model = load(fs::path(DULTRA_GOLDEN) / c.json["model"].string,
                     overrides.present() ? folder / overrides.string : fs::path(), compute);
      body(c);
    }
    ++seen;
  }
  CHECK(seen > 0, "no cases of kind ", kind, " in ", DULTRA_GOLDEN);
}

std::vector<int32_t> ids_of(const Recorded& tensor, int64_t begin, int64_t count) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(int32_t(tensor[begin + i]));
  return out;
}

DULTRA_TEST(golden_forward) {
  for_each_case("forward", [](const Case& c) {
    const Recorded& ids = c.inputs.at("ids");
    const int64_t batch = ids.shape.at(0), length = ids.shape.at(1);
    std::vector<int32_t> offsets;
    for (int64_t b = 0; b <= batch; ++b) offsets.push_back(int32_t(b * length));
    const Json& tolerance = c.json["tolerance"];
    const double atol = tolerance["fp32"]["atol"].number, rtol = tolerance["fp32"]["rtol"].number;
    const Json& narrow = tolerance["bf16_weights_and_activations"];
    Deviations deviations;
    const auto compare = [&](const std::string& what, const HostFloats& actual, const Recorded& wanted, double l2) {
      CHECK(actual.size() == wanted.data.size(), c.where(), " ", what, ": ", actual.size(), " numbers for ",
            wanted.data.size());
      if (actual.size() != wanted.data.size()) return;
      double difference = 0, size = 0, largest = 0;
      int64_t wrong = 0;
      for (size_t i = 0; i < actual.size(); ++i) {
        const double error = std::fabs(double(actual.data()[i]) - wanted.data[i]);
        wrong += !(error <= atol + rtol * std::fabs(wanted.data[i]));
        largest = std::max(largest, std::isnan(error) ? INFINITY : error);
        difference += error * error;
        size += wanted.data[i] * wanted.data[i];
      }
      if (c.compute == Compute::kF32) {
        deviations[what] = std::max(deviations[what], largest);
        CHECK(wrong == 0, c.where(), " ", what, ": ", wrong, " numbers differ, by up to ", largest);
      } else {
        const double relative = std::sqrt(difference / size);
        deviations[what] = std::max(deviations[what], relative);
        CHECK(l2 > 0 && relative <= l2, c.where(), " ", what, ": relative L2 error ", relative, ", expected at most ",
              l2);
      }
    };
    for (const char* name : {"planner_a", "planner_b"}) {
      ForwardRequest request;
      request.ids = ids_of(ids, 0, batch * length);
      request.offsets = offsets;
      request.logits = request.planner = true;
      for (double t : c.inputs.at(std::string(name) + ".timestep").data) request.timestep.push_back(float(t));
      for (double x : c.inputs.at(std::string(name) + ".mask_index").data) request.mask_index.push_back(uint8_t(x));
      const ForwardResult got = run_forward(*c.model, request, nullptr);
      compare("hidden", got.hidden, c.wanted("hidden"), narrow["hidden_rel_l2"].number);
      compare("logits", got.logits, c.wanted("logits"), narrow["logits_rel_l2"].number);
      compare("planner", got.planner_logits, c.wanted(std::string(name) + ".logits"), narrow["planner_rel_l2"].number);
    }
    print(c, deviations);
  });
}

// Tokens of all cases in bf16, and how many of them are the recorded ones.
struct Agreement {
  int64_t tokens = 0, equal = 0;
};

// Every step of a generation from the recorded tokens before it. `request` fills in what the sampler is;
// `compare(candidate, position, result)` looks at the numbers of a candidate, `position` being its place in the
// recorded arrays.
void replay(const Case& c, const char* selection, Agreement* agreement,
            const std::function<void(SessionRequest&, int64_t step)>& sampler,
            const std::function<void(SessionRequest&, const std::vector<int64_t>& positions)>& draws,
            const std::function<void(const StepResult&, size_t candidate, int64_t position, Deviations*)>& compare) {
  const Json& args = c.json["args"];
  const int64_t batch = int64_t(c.json["batch"].number), prompt = int64_t(c.json["prompt_length"].number);
  const int64_t block = int64_t(args["block_length"].number), length = prompt + int64_t(args["gen_length"].number);
  const int32_t mask = int32_t(args["mask_id"].number);
  const Recorded &before = c.wanted("x_before"), &after = c.wanted("x_after"), &mask_index = c.wanted("mask_index");
  std::vector<int32_t> offsets;
  for (int64_t b = 0; b <= batch; ++b) offsets.push_back(int32_t(b * length));
  Deviations deviations;
  int64_t mismatches = 0;
  std::string first;
  const auto exact = [&](bool equal, const std::string& what) {
    if (!equal && mismatches++ == 0) first = what;
  };
  for (int64_t step = 0; step < before.shape.at(0); ++step) {
    const int64_t at = step * batch * length;
    const std::vector<int32_t> ids = ids_of(before, at, batch * length);
    // The block is the first in which any row has a mask left.
    int64_t end = length;
    for (int64_t i = length; i-- > prompt;)
      for (int64_t b = 0; b < batch; ++b)
        if (ids[size_t(b * length + i)] == mask) end = prompt + ((i - prompt) / block + 1) * block;
    SessionRequest request;
    std::vector<int64_t> positions;  // of candidates, in the recorded arrays
    for (int64_t b = 0; b < batch; ++b) {
      const size_t had = positions.size();
      for (int64_t i = 0; i < length; ++i) {
        const bool is_candidate = ids[size_t(b * length + i)] == mask && i < end;
        exact(is_candidate == (mask_index[at + b * length + i] != 0),
              text("mask_index, step ", step, " row ", b, " position ", i));
        if (is_candidate) positions.push_back(at + b * length + i);
      }
      if (positions.size() == had) continue;  // done with this block: the row waits for the others
      request.rows.push_back(int32_t(b));
      request.window_ends.push_back(int32_t(end));
      request.row_keys.push_back(uint32_t(b));
      request.steps.push_back(uint32_t(step));
    }
    request.temperature = float(args["temperature"].number);
    request.reference_likelihood = true;
    sampler(request, step);
    draws(request, positions);
    Session session(c.model, ids, offsets);
    const StepResult got = session.step(request);
    exact(got.positions.size() == positions.size(), text("candidates, step ", step));
    if (got.positions.size() != positions.size()) break;
    for (size_t i = 0; i < positions.size(); ++i) {
      const std::string where = text(", step ", step, " position ", positions[i] - at);
      const bool same_token = got.tokens[i] == int32_t(c.wanted("x0")[positions[i]]);
      agreement->tokens += c.compute == Compute::kBF16;
      agreement->equal += c.compute == Compute::kBF16 && same_token;
      exact(same_token, "token" + where);
      exact(got.selected[i] == (c.wanted(selection)[positions[i]] != 0), "selection" + where);
      const int32_t left = got.selected[i] ? got.tokens[i] : mask;
      exact(left == int32_t(after[positions[i]]), "x_after" + where);
      if (c.compute == Compute::kF32) compare(got, i, positions[i], &deviations);
    }
    if (c.expected.count("forced"))
      for (size_t r = 0; r < request.rows.size(); ++r)
        exact(got.forced[r] == (c.wanted("forced")[step * batch + request.rows[r]] != 0),
              text("forced, step ", step, " row ", request.rows[r]));
    if (c.expected.count("timestep"))
      for (size_t r = 0; r < request.rows.size(); ++r) {
        const double error = std::fabs(got.timesteps[r] - c.wanted("timestep")[step * batch + request.rows[r]]);
        CHECK(error <= c.json["tolerance"]["timestep"].number, c.where(), " timestep, step ", step, ": off by ", error);
      }
  }
  if (c.compute == Compute::kF32)
    CHECK(mismatches == 0, c.where(), ": ", mismatches, " decisions differ, the first: ", first);
  print(c, deviations);
}

void check_agreement(const Agreement& agreement) {
  CHECK(double(agreement.equal) >= 0.95 * double(agreement.tokens), "bf16: ", agreement.equal, " of ", agreement.tokens,
        " tokens are the recorded ones");
  if (std::getenv("DULTRA_VERBOSE") && agreement.tokens > 0)
    std::printf("  bf16: %lld of %lld tokens are the recorded ones\n", static_cast<long long>(agreement.equal),
                static_cast<long long>(agreement.tokens));
}

DULTRA_TEST(golden_planner_generation) {
  Agreement agreement;
  for_each_case("generate", [&](const Case& c) {
    const Json &args = c.json["args"], &tolerance = c.json["tolerance"];
    const int64_t vocab = c.model->config().embedding_size;
    const auto close = [&](const char* what, float actual, int64_t position, Deviations* deviations) {
      if (!c.expected.count(what)) return;
      const double wanted = c.wanted(what)[position], error = double(actual) == wanted ? 0 : std::fabs(actual - wanted);
      (*deviations)[what] = std::max((*deviations)[what], error);
      CHECK(error <= tolerance[what].number, c.where(), " ", what, " at ", position, ": ", actual, " for ", wanted);
    };
    replay(
        c, "unmasking_index", &agreement,
        [&](SessionRequest& request, int64_t) {
          request.rule = args["mode"].string == "training" ? UnmaskRule::kPlannerBernoulli : UnmaskRule::kPlannerTopK;
          request.probability_scale = float(args["factor"].number_or(1));
          request.planner_temperature = float(args["planner_temperature"].number_or(1));
        },
        [&](SessionRequest& request, const std::vector<int64_t>& positions) {
          for (int64_t position : positions) {
            if (c.inputs.count("rand_u")) request.position_uniforms.push_back(c.inputs.at("rand_u")[position]);
            // A recorded 0 has infinitely negative noise; the smallest normal double stands in for it.
            for (int64_t v = 0; c.inputs.count("gumbel_u") && v < vocab; ++v)
              request.token_uniforms.push_back(std::max(c.inputs.at("gumbel_u")[position * vocab + v], 2.3e-308));
          }
        },
        [&](const StepResult& got, size_t i, int64_t position, Deviations* deviations) {
          close("planner_logits", got.planner_logits[i], position, deviations);
          close("unmasking_prob", got.probabilities[i], position, deviations);
          close("x0_logp", got.log_probs[i], position, deviations);
          close("sequence_logp", got.log_likelihoods[i], position, deviations);
        });
  });
  check_agreement(agreement);
}

DULTRA_TEST(golden_confidence_generation) {
  Agreement agreement;
  for_each_case("fastdllm", [&](const Case& c) {
    const Json& args = c.json["args"];
    const int64_t block = int64_t(args["block_length"].number), blocks = int64_t(args["gen_length"].number) / block;
    replay(
        c, "transfer_index", &agreement,
        [&](SessionRequest& request, int64_t step) {
          request.exclude_mask = false;
          if (args["factor"].present()) {
            request.rule = UnmaskRule::kFactor;
            request.factor = args["factor"].number;
            request.factor_last_pair = true;
          } else if (args["threshold"].present()) {
            request.rule = UnmaskRule::kThreshold;
            request.threshold = args["threshold"].number;
          } else {
            request.rule = UnmaskRule::kFixed;
            const int64_t steps = int64_t(args["steps"].number) /
                                  blocks;  // of a block; the first ones take one more where it does not divide
            request.counts.assign(request.rows.size(), int32_t(block / steps + (step % steps < block % steps)));
          }
        },
        [](SessionRequest&, const std::vector<int64_t>&) {},
        [&](const StepResult& got, size_t i, int64_t position, Deviations* deviations) {
          const double wanted = c.wanted("confidence")[position], error = std::fabs(got.confidences[i] - wanted);
          (*deviations)["confidence"] = std::max((*deviations)["confidence"], error);
          CHECK(error <= c.json["tolerance"]["confidence"].number, c.where(), " confidence at ", position, ": ",
                got.confidences[i], " for ", wanted);
        });
  });
  check_agreement(agreement);
}

}  // namespace
}  // namespace test
}  // namespace dultra
