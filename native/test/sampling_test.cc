#include <numeric>

#include "harness.h"

namespace dultra {
namespace test {
namespace {

struct Output {
  Guarded<int32_t> token;
  Guarded<float> log_prob, confidence, max_prob, entropy, margin;
  Guarded<uint8_t> finite;
  explicit Output(size_t m)
      : token(m),
        log_prob(poisoned(m)),
        confidence(poisoned(m)),
        max_prob(poisoned(m)),
        entropy(poisoned(m)),
        margin(poisoned(m)),
        finite(m) {}
  bool guards_intact() const {
    return token.guards_intact() && log_prob.guards_intact() && confidence.guards_intact() &&
           max_prob.guards_intact() && entropy.guards_intact() && margin.guards_intact() && finite.guards_intact();
  }
};

struct Options {
  float temperature = 0;
  int32_t excluded = -1;
  bool tempered = false;
  const double* uniforms = nullptr;
  int32_t top_k = 0;
  double top_p = 1;
  bool top_p_first = false, margin = false;
  SampleScores scores = SampleScores::kModel;
};

Output sample(Backend& backend, const float* logits, int64_t rows, int64_t vocab,
              const std::vector<rng::Coordinates>& at, const Options& options) {
  Output out(static_cast<size_t>(rows));
  SampleArgs a{};
  a.logits = logits;
  a.rows = rows;
  a.vocab = vocab;
  a.temperature = options.temperature;
  a.excluded_token = options.excluded;
  a.at = options.temperature < 1e-4f || options.uniforms ? nullptr : at.data();
  a.uniforms = options.uniforms;
  a.tempered_log_prob = options.tempered;
  a.top_k = options.top_k;
  a.top_p = options.top_p;
  a.top_p_first = options.top_p_first;
  a.scores = options.scores;
  a.margin = options.margin ? out.margin.data() : nullptr;
  a.token = out.token.data();
  a.log_prob = out.log_prob.data();
  a.confidence = out.confidence.data();
  a.max_prob = out.max_prob.data();
  a.entropy = out.entropy.data();
  a.finite = out.finite.data();
  backend.sample_forward(a);
  return out;
}
Output sample(Backend& backend, const std::vector<float>& logits, int64_t vocab,
              const std::vector<rng::Coordinates>& at, const Options& options) {
  return sample(backend, logits.data(), int64_t(logits.size()) / vocab, vocab, at, options);
}

std::vector<rng::Coordinates> coordinates(size_t rows, uint64_t seed) {
  std::vector<rng::Coordinates> at;
  for (size_t i = 0; i < rows; ++i) at.push_back({seed, uint32_t(i % 3), uint32_t(i / 5), uint32_t(i * 7)});
  return at;
}

// argmax of logit + T * noise over all tokens, in double.
int32_t full_scan(const float* x, int64_t vocab, float temperature, int32_t excluded, const rng::Coordinates* at,
                  const double* uniforms) {
  int32_t token = -1;
  double best = -INFINITY;
  for (int32_t v = 0; v < vocab; ++v) {
    if (v == excluded || x[v] == -INFINITY) continue;
    double score = x[v];
    if (temperature >= 1e-4f)
      score = x[v] + double(temperature) * (uniforms ? rng::gumbel(uniforms[v]) : rng::token_gumbel(*at, uint32_t(v)));
    if (token < 0 || score > best) {
      best = score;
      token = v;
    }
  }
  return token;
}

void check_row(const float* x, int64_t vocab, const Options& options, const Output& out, size_t row,
               const std::string& where) {
  double top = -INFINITY, sum = 0, tempered = 0, weighted = 0;
  for (int64_t v = 0; v < vocab; ++v)
    if (v != options.excluded) top = std::max(top, double(x[v]));
  for (int64_t v = 0; v < vocab; ++v) {
    if (v == options.excluded || x[v] == -INFINITY) continue;
    sum += std::exp(x[v] - top);
    weighted += std::exp(x[v] - top) * (x[v] - top);
    if (options.tempered && options.temperature >= 1e-4f) tempered += std::exp((x[v] - top) / options.temperature);
  }
  const double below = x[out.token[row]] - top;
  const bool at_temperature = options.tempered && options.temperature >= 1e-4f;
  const double log_prob = at_temperature ? below / options.temperature - std::log(tempered) : below - std::log(sum);
  CHECK(std::fabs(out.confidence[row] - std::exp(below) / sum) < 1e-6, where, " confidence ", out.confidence[row],
        " for ", std::exp(below) / sum);
  CHECK(std::fabs(out.max_prob[row] - 1 / sum) < 1e-6, where, " max_prob ", out.max_prob[row], " for ", 1 / sum);
  CHECK(std::fabs(out.log_prob[row] - log_prob) < 2e-6 + 2e-7 * std::fabs(log_prob), where, " log_prob ",
        out.log_prob[row], " for ", log_prob);
  const double entropy = std::log(sum) - weighted / sum;
  CHECK(std::fabs(out.entropy[row] - entropy) < 2e-6 + 1e-6 * entropy, where, " entropy ", out.entropy[row], " for ",
        entropy);
  CHECK(out.finite[row] == 1, where);
}

// The drawn token is exactly the one of the full scan, whatever the shape of the logits, temperature, instruction set.
DULTRA_TEST(sampling_equals_the_full_scan) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {1, 2, 3, 15, 64, 97, 4096, 4097, 9001})
      for (float temperature : {0.0f, 5e-5f, 1e-4f, 0.01f, 0.1f, 0.5f, 1.0f, 3.0f, 100.0f})
        for (double scale : {0.0, 0.3, 2.5, 30.0}) {
          const size_t rows = vocab > 4000 ? 3 : 12;
          Random random(uint64_t(vocab) + uint64_t(temperature * 1000) + uint64_t(scale * 7));
          const std::vector<float> logits = normals(random, rows * size_t(vocab), scale);
          const std::vector<rng::Coordinates> at = coordinates(rows, random.bits());
          for (int32_t excluded : {-1, int32_t(vocab / 2)}) {
            if (vocab == 1 && excluded == 0) continue;
            Options options;
            options.temperature = temperature;
            options.excluded = excluded;
            options.tempered = excluded < 0;
            const Output out = sample(backend, logits, vocab, at, options);
            CHECK(out.guards_intact(), isa);
            for (size_t i = 0; i < rows; ++i) {
              const std::string where =
                  text(isa, " V ", vocab, " T ", temperature, " scale ", scale, " excluded ", excluded, " row ", i);
              const int32_t expected =
                  full_scan(&logits[i * size_t(vocab)], vocab, temperature, excluded, &at[i], nullptr);
              CHECK(out.token[i] == expected, where, " token ", out.token[i], " for ", expected);
              if (out.token[i] == expected) check_row(&logits[i * size_t(vocab)], vocab, options, out, i, where);
            }
          }
        }
  });
}

// Tokens that a row's set lacks count as -inf; rows without a set, and what is no number, stay bit for bit.
DULTRA_TEST(allowed_tokens) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {1, 31, 32, 33, 126, 257, 4097}) {
      Random random{uint64_t(vocab)};
      const int64_t rows = 7, sets = 3, words = (vocab + 31) / 32;
      const std::vector<int32_t> index{2, -1, 0, 2, 1, -1, 0};
      std::vector<uint32_t> bits(size_t(sets * words));
      for (uint32_t& word : bits) word = uint32_t(random.bits());
      for (int64_t s = 0; s < sets; ++s) bits[size_t(s * words)] |= 1;  // one token at least
      std::vector<float> before = normals(random, size_t(rows * vocab), 3);
      if (vocab > 126) {
        before[3] = NAN;
        before[size_t(2 * vocab + 40)] = INFINITY;
        before[size_t(4 * vocab + 41)] = -INFINITY;
      }
      Guarded<float> logits(before.size());
      std::copy(before.begin(), before.end(), logits.data());
      std::vector<float> expected = before;
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t v = 0; v < vocab && index[size_t(row)] >= 0; ++v) {
          const uint32_t word = bits[size_t(index[size_t(row)] * words + v / 32)];
          float& x = expected[size_t(row * vocab + v)];
          if ((word >> (v % 32) & 1) == 0 && !std::isnan(x) && x != INFINITY) x = -INFINITY;
        }
      backend.allow_tokens(logits.data(), bits.data(), sets, index.data(), rows, vocab);
      CHECK(logits.guards_intact() && same_bits(logits.data(), expected.data(), expected.size()), isa, " V ", vocab);
    }
    backend.allow_tokens(nullptr, nullptr, 0, nullptr, 0, 40);
  });
}

// 126464 tokens are those of LLaDA; 140001 are more slices than a warp has lanes, and rows that are not aligned.
DULTRA_TEST(sampling_of_a_large_vocabulary) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {126464, 140001}) {
      Random random(5);
      std::vector<float> logits = normals(random, size_t(2 * vocab), 2.5);
      for (int64_t v = vocab; v < vocab + 1000; ++v) logits[size_t(v)] += 20;  // one row with a few strong tokens
      for (float temperature : {0.0f, 0.1f, 1.0f})
        for (uint64_t seed = 0; seed < 3; ++seed) {
          const std::vector<rng::Coordinates> at = coordinates(2, seed);
          Options options;
          options.temperature = temperature;
          options.excluded = 126336;
          options.tempered = true;
          const Output out = sample(backend, logits, vocab, at, options);
          for (size_t i = 0; i < 2; ++i) {
            const std::string where = text(isa, " V ", vocab, " T ", temperature, " row ", i);
            CHECK(out.token[i] == full_scan(&logits[i * size_t(vocab)], vocab, temperature, 126336, &at[i], nullptr),
                  where);
            check_row(&logits[i * size_t(vocab)], vocab, options, out, i, where);
          }
        }
    }
  });
}

// Large offsets leave the logits few distinct values: many ties, and scores whose rounding is coarse.
DULTRA_TEST(sampling_is_exact_at_large_offsets) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (double offset : {1e4, -1e6, 1e9, -1e12, 1e30})
      for (float temperature : {1e-4f, 0.1f, 1.0f}) {
        const int64_t vocab = 5000;
        Random random(6);
        std::vector<float> logits = normals(random, size_t(2 * vocab), 3);
        for (float& x : logits) x = float(x + offset);
        const std::vector<rng::Coordinates> at = coordinates(2, 8);
        Options options;
        options.temperature = temperature;
        const Output out = sample(backend, logits, vocab, at, options);
        for (size_t i = 0; i < 2; ++i)
          CHECK(out.token[i] == full_scan(&logits[i * size_t(vocab)], vocab, temperature, -1, &at[i], nullptr), isa,
                " offset ", offset, " T ", temperature);
      }
  });
}

// Scores that differ by nothing but the rounding of the logits: what leaves tokens out before their noise is known
// exactly may not be wrong by more than it allows for. The fewer tokens take part, the larger is their noise and the
// closer are its bounds.
DULTRA_TEST(sampling_decides_near_ties) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const int64_t vocab = 20000;
    for (float temperature : {1e-4f, 0.1f, 1.0f, 30.0f})
      for (double least : {-0.5, 1.2, 3.0, 6.2})
        for (uint64_t seed = 0; seed < 4; ++seed) {
          const std::vector<rng::Coordinates> at = coordinates(1, seed);
          std::vector<float> logits(static_cast<size_t>(vocab));
          for (uint32_t v = 0; v < vocab; ++v) {
            const double noise = rng::token_gumbel(at[0], v);
            logits[v] = float(noise < least ? -80.0 * temperature : -temperature * noise);
          }
          Options options;
          options.temperature = temperature;
          const int32_t token = sample(backend, logits, vocab, at, options).token[0];
          const int32_t expected = full_scan(logits.data(), vocab, temperature, -1, &at[0], nullptr);
          CHECK(token == expected, isa, " T ", temperature, " noise from ", least, " seed ", seed, ": ", token, " for ",
                expected);
        }
  });
}

// Token 69 has a uniform within 2^-25 of 1 there, the largest that the high word's upper bits can tell: its noise
// is 17.6, and less far than its logit is below that of token 5.
DULTRA_TEST(sampling_knows_how_coarse_a_uniform_is) {
  const std::vector<rng::Coordinates> at{{1, 0, 0, 26}};
  const double noise = rng::token_gumbel(at[0], 69);
  CHECK(noise > 17.5 && noise < 17.7, noise);
  for_each_backend([&](Backend& backend, const std::string& isa) {
    for (float temperature : {0.1f, 1.0f})
      for (float below : {12.0f, 22.0f}) {
        std::vector<float> logits(300, -80 * temperature);
        logits[5] = 0;
        logits[69] = -below * temperature;
        Options options;
        options.temperature = temperature;
        const int32_t expected = full_scan(logits.data(), 300, temperature, -1, &at[0], nullptr);
        CHECK(expected == (below > 17 ? 5 : 69), isa);
        CHECK(sample(backend, logits, 300, at, options).token[0] == expected, isa, " T ", temperature, " below ",
              below);
      }
  });
}

// Rows of equal logits, of little but -inf, of a spread that no exponential bears; of less than a slice of the kernel,
// a whole one, and parts.
DULTRA_TEST(sampling_of_extreme_rows) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {5, 4095, 4096, 12288, 12290}) {
      Random random{uint64_t(vocab)};
      const size_t n = size_t(vocab);
      std::vector<std::vector<float>> rows;
      rows.emplace_back(n, -2.5f);
      rows.emplace_back(n, -INFINITY);
      rows.back()[n / 2] = rows.back()[n - 1] = 1;
      rows.push_back(normals(random, n, 1));
      for (size_t v = 0; v < n; ++v)
        if (v % 4096 > 2 || v / 4096 == 1) rows.back()[v] = -INFINITY;
      rows.push_back(normals(random, n, 1e6));
      rows.push_back(normals(random, n, 1e37));
      rows.push_back(normals(random, n, 1e-30));
      rows.push_back(normals(random, n, 1));
      rows.back()[n - 1] = 3e38f;
      std::vector<float> logits;
      for (const std::vector<float>& row : rows) logits.insert(logits.end(), row.begin(), row.end());
      for (float temperature : {0.0f, 1e-4f, 1.0f, 1e4f, 1e30f}) {
        const std::vector<rng::Coordinates> at = coordinates(rows.size(), 9);
        Options options;
        options.temperature = temperature;
        const Output out = sample(backend, logits, vocab, at, options);
        CHECK(out.guards_intact(), isa);
        for (size_t i = 0; i < rows.size(); ++i) {
          const std::string where = text(isa, " V ", vocab, " T ", temperature, " row ", i);
          const int32_t expected = full_scan(rows[i].data(), vocab, temperature, -1, &at[i], nullptr);
          CHECK(out.token[i] == expected, where, " token ", out.token[i], " for ", expected);
          if (out.token[i] == expected) check_row(rows[i].data(), vocab, options, out, i, where);
        }
      }
    }
  });
}

DULTRA_TEST(sampling_ties_go_to_the_lowest_id) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {40, 9000}) {
      std::vector<float> logits(static_cast<size_t>(vocab), 1.0f);
      logits[7] = logits[20] = logits[size_t(vocab - 1)] = 3;
      CHECK(sample(backend, logits, vocab, {}, {}).token[0] == 7, isa);
      Options options;
      options.excluded = 7;
      CHECK(sample(backend, logits, vocab, {}, options).token[0] == 20, isa);
      // Equal noise: the recorded uniforms say so.
      const std::vector<double> uniforms(static_cast<size_t>(vocab), 0.5);
      options.temperature = 1;
      options.uniforms = uniforms.data();
      CHECK(sample(backend, logits, vocab, {}, options).token[0] == 20, isa);
    }
  });
}

DULTRA_TEST(sampling_replays_recorded_uniforms) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const int64_t vocab = 5000;
    Random random(7);
    const std::vector<float> logits = normals(random, size_t(6 * vocab), 2);
    std::vector<double> uniforms(logits.size());
    for (double& u : uniforms) u = random.uniform();
    Options options;
    options.temperature = 0.7f;
    options.excluded = 11;
    options.uniforms = uniforms.data();
    const Output out = sample(backend, logits, vocab, {}, options);
    for (size_t i = 0; i < 6; ++i)
      CHECK(
          out.token[i] == full_scan(&logits[i * size_t(vocab)], vocab, 0.7f, 11, nullptr, &uniforms[i * size_t(vocab)]),
          isa, " row ", i);
  });
}

// Frequencies of 20000 draws (2000 under the emulator) against softmax(logits / T): chi-square with 9 degrees of
// freedom (0.9999 quantile 33.7).
DULTRA_TEST(sampling_distribution) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (float temperature : {0.5f, 1.0f}) {
      const int64_t vocab = 10;
      const size_t draws = kEmulated ? 2000 : 20000;
      const float row[10] = {1, 0.5f, 0, -0.5f, 1.5f, 0.2f, 0.1f, -1, 0.9f, 0.7f};
      std::vector<float> logits;
      std::vector<rng::Coordinates> at;
      for (size_t i = 0; i < draws; ++i) {
        logits.insert(logits.end(), row, row + 10);
        at.push_back({42, uint32_t(i % 100), 3, uint32_t(i / 100)});
      }
      Options options;
      options.temperature = temperature;
      const Output out = sample(backend, logits, vocab, at, options);
      double sum = 0, chi = 0, counts[10] = {};
      for (float x : row) sum += std::exp(x / temperature);
      for (size_t i = 0; i < draws; ++i) ++counts[out.token[i]];
      for (int v = 0; v < 10; ++v) {
        const double expected = double(draws) * std::exp(row[v] / temperature) / sum;
        chi += (counts[v] - expected) * (counts[v] - expected) / expected;
      }
      CHECK(chi < 33.7, isa, " T ", temperature, " chi-square ", chi);
    }
  });
}

// Tokens that top-k and top-p keep, most probable first, by sorting all.
std::vector<int32_t> kept_tokens(const float* x, int64_t vocab, const Options& options) {
  std::vector<int32_t> order;
  for (int32_t v = 0; v < vocab; ++v)
    if (v != options.excluded && x[v] > -INFINITY) order.push_back(v);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  const double temperature = options.temperature < 1e-4f ? 1.0 : double(options.temperature);
  const auto weight = [&](int32_t v) { return std::exp((double(x[v]) - x[order[0]]) / temperature); };
  double all = 0, total = 0, before = 0;
  for (int32_t v : order) all += weight(v);
  if (options.top_k > 0 && size_t(options.top_k) < order.size()) {
    size_t size = size_t(options.top_k);
    while (size < order.size() && x[order[size]] == x[order[size - 1]]) ++size;
    order.resize(size);
  }
  for (int32_t v : order) total += weight(v);
  if (options.top_p_first) total = all;
  size_t size = 0;
  while (size < order.size() && (size == 0 || options.top_p == 1 || before <= options.top_p * total))
    before += weight(order[size++]);
  order.resize(size);
  return order;
}

// What is drawn and scored with filters is what sorting finds, and the same bits on every backend; the rest of a row's
// results is not touched by them.
DULTRA_TEST(sampling_filters_as_sorting_does) {
  std::vector<std::vector<float>> first;
  for_each_backend([&](Backend& backend, const std::string& isa) {
    size_t place = 0;
    for (int64_t vocab : {1, 2, 7, 97, 4099})
      for (float temperature : {0.0f, 0.3f, 1.0f, 4.0f})
        for (int32_t top_k : {0, 1, 3, 40, 5000})
          for (double top_p : {1.0, 0.95, 0.5, 1e-9}) {
            if (kEmulated && (vocab > 1000 || temperature == 4.0f || top_k == 5000 || top_p == 0.95)) continue;
            const size_t rows = kEmulated ? 2 : 4;
            Random random(uint64_t(vocab) * 31 + uint64_t(temperature * 10) + uint64_t(top_k));
            std::vector<float> logits = normals(random, rows * size_t(vocab), 2.5);
            for (size_t i = 0; i < rows / 2 * size_t(vocab); ++i) logits[i] = std::round(logits[i] * 2) / 2;  // ties
            if (vocab > 5) logits[size_t(vocab) + 2] = -INFINITY;
            const std::vector<rng::Coordinates> at = coordinates(rows, random.bits());
            Options options;
            options.temperature = temperature;
            options.top_k = top_k;
            options.top_p = top_p;
            options.top_p_first = top_k == 40;
            options.excluded = vocab > 2 ? int32_t(vocab / 2) : -1;
            options.margin = true;
            for (SampleScores scores : {SampleScores::kModel, SampleScores::kTempered, SampleScores::kFiltered}) {
              options.scores = scores;
              const Output out = sample(backend, logits, vocab, at, options);
              CHECK(out.guards_intact(), isa);
              if (first.size() <= place) first.emplace_back();
              std::vector<float> numbers;
              for (size_t i = 0; i < rows; ++i) {
                const float* x = &logits[i * size_t(vocab)];
                const std::string where = text(isa, " V ", vocab, " T ", temperature, " k ", top_k, " p ", top_p,
                                               " scores ", int(scores), " row ", i);
                const std::vector<int32_t> kept = kept_tokens(x, vocab, options);
                std::vector<float> only(size_t(vocab), -INFINITY);
                for (int32_t v : kept) only[size_t(v)] = x[v];
                CHECK(out.token[i] == full_scan(only.data(), vocab, temperature, -1, &at[i], nullptr), where);
                // The distribution that is scored, and the token in it.
                Options plain;
                plain.excluded = options.excluded;
                const std::vector<float>& from =
                    scores == SampleScores::kFiltered ? only : std::vector<float>(x, x + vocab);
                const double t = scores == SampleScores::kModel || temperature == 0 ? 1.0 : double(temperature);
                std::vector<double> p;
                double top = -INFINITY, sum = 0, entropy = 0;
                for (int32_t v = 0; v < vocab; ++v)
                  if (v != options.excluded) top = std::max(top, double(from[size_t(v)]));
                for (int32_t v = 0; v < vocab; ++v)
                  p.push_back(v == options.excluded ? 0 : std::exp((from[size_t(v)] - top) / t));
                for (double w : p) sum += w;
                const double chosen = p[size_t(out.token[i])] / sum;
                for (double& w : p) {
                  w /= sum;
                  if (w > 0) entropy -= w * std::log(w);
                }
                std::sort(p.begin(), p.end(), std::greater<double>());
                const double margin = p[0] - (p.size() > 1 ? p[1] : 0);
                CHECK(std::fabs(out.confidence[i] - chosen) < 1e-6, where, " confidence ", out.confidence[i], " for ",
                      chosen);
                CHECK(std::fabs(out.max_prob[i] - p[0]) < 1e-6, where);
                CHECK(std::fabs(out.margin[i] - margin) < 1e-6, where, " margin ", out.margin[i], " for ", margin);
                CHECK(std::fabs(out.entropy[i] - entropy) < 4e-6 + 1e-6 * entropy, where, " entropy ", out.entropy[i],
                      " for ", entropy);
                numbers.push_back(float(out.token[i]));
                numbers.push_back(out.margin[i]);
                if (scores == SampleScores::kModel) continue;
                numbers.insert(numbers.end(), {out.confidence[i], out.max_prob[i], out.entropy[i]});
              }
              if (first[place].empty()) first[place] = numbers;
              CHECK(same_bits(numbers.data(), first[place].data(), numbers.size()), isa, " V ", vocab, " T ",
                    temperature, " k ", top_k, " p ", top_p, " scores ", int(scores));
              ++place;
            }
            // The log-probability is of the whole row: that of the same token without filters.
            const Output filtered = sample(backend, logits, vocab, at, options);
            for (size_t i = 0; i < rows; ++i) {
              const float* x = &logits[i * size_t(vocab)];
              double top = -INFINITY, sum = 0;
              for (int32_t v = 0; v < vocab; ++v)
                if (v != options.excluded) top = std::max(top, double(x[v]));
              for (int32_t v = 0; v < vocab; ++v)
                if (v != options.excluded) sum += std::exp(x[v] - top);
              const double log_prob = x[filtered.token[i]] - top - std::log(sum);
              CHECK(std::fabs(filtered.log_prob[i] - log_prob) < 2e-6 + 2e-7 * std::fabs(log_prob), isa, " row ", i);
            }
          }
  });
}

// Frequencies of 20000 draws (2000 under the emulator) against the filtered softmax(logits / T): chi-square with 4
// degrees of freedom (0.9999 quantile 23.5), and nothing else is drawn.
DULTRA_TEST(sampling_distribution_of_filters) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (bool by_k : {true, false}) {
      const int64_t vocab = 10;
      const size_t draws = kEmulated ? 2000 : 20000;
      const float row[10] = {1, 0.5f, 0, -0.5f, 1.5f, 0.2f, 0.1f, -1, 0.9f, 0.7f};
      std::vector<float> logits;
      std::vector<rng::Coordinates> at;
      for (size_t i = 0; i < draws; ++i) {
        logits.insert(logits.end(), row, row + 10);
        at.push_back({43, uint32_t(i % 100), 3, uint32_t(i / 100)});
      }
      Options options;
      options.temperature = 0.7f;
      if (by_k) options.top_k = 5;
      if (!by_k) options.top_p = 0.77;
      const Output out = sample(backend, logits, vocab, at, options);
      const std::vector<int32_t> kept{4, 0, 8, 9, 1};
      CHECK(kept_tokens(row, vocab, options) == kept, isa);
      double sum = 0, chi = 0, counts[10] = {};
      for (int32_t v : kept) sum += std::exp(row[v] / 0.7);
      for (size_t i = 0; i < draws; ++i) ++counts[out.token[i]];
      double drawn = 0;
      for (int32_t v : kept) {
        const double expected = double(draws) * std::exp(row[v] / 0.7) / sum;
        chi += (counts[v] - expected) * (counts[v] - expected) / expected;
        drawn += counts[v];
      }
      CHECK(drawn == double(draws), isa);
      CHECK(chi < 23.5, isa, " chi-square ", chi);
    }
  });
}

// Whether the draw is refused with a message that begins with `option`.
bool refuses(Backend& backend, const std::string& option, const Options& options) {
  try {
    sample(backend, std::vector<float>(10, 0.0f), 10, {}, options);
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument && std::string(error.what()).find(option) == 0;
  }
  return false;
}

DULTRA_TEST(sampling_checks_its_filters) {
  const auto backend = make_backend(1, "");
  for (double bad : {0.0, -0.1, 1.1, double(NAN)}) {
    Options options;
    options.top_p = bad;
    CHECK(refuses(*backend, "top_p", options), bad);
  }
  Options options;
  options.top_k = -1;
  CHECK(refuses(*backend, "top_k", options), "");
}

DULTRA_TEST(sampling_flags_what_is_not_finite) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {5, 33, 9000})
      for (float temperature : {0.0f, 1.0f})
        for (float bad : {float(NAN), float(INFINITY), -float(INFINITY)})
          for (int64_t where : {int64_t(0), vocab / 2, vocab - 1}) {
            Random random(3);
            std::vector<float> logits = normals(random, size_t(3 * vocab));
            logits[size_t(vocab + where)] = bad;
            const Output out =
                sample(backend, logits, vocab, coordinates(3, 1), Options{temperature, -1, true, nullptr});
            CHECK(out.finite[0] == 1 && out.finite[2] == 1, isa);
            CHECK(out.finite[1] == (bad == -INFINITY), isa, " V ", vocab, " at ", where, " of ", bad);
            CHECK(out.token[1] >= 0 && out.token[1] < vocab, isa);
            if (bad == -INFINITY)
              check_row(&logits[size_t(vocab)], vocab, Options{temperature, -1, true, nullptr}, out, 1, isa);
            // Filters do not hide it.
            Options filtered{temperature, -1, true, nullptr};
            filtered.top_k = 3;
            filtered.top_p = 0.9;
            filtered.scores = SampleScores::kFiltered;
            filtered.margin = true;
            const Output under = sample(backend, logits, vocab, coordinates(3, 1), filtered);
            CHECK(under.finite[0] == 1 && under.finite[2] == 1 && under.finite[1] == (bad == -INFINITY), isa);
            CHECK(under.token[1] >= 0 && under.token[1] < vocab, isa);
            // Excluding the bad token makes the row good again.
            const Output without =
                sample(backend, logits, vocab, coordinates(3, 1), Options{temperature, int32_t(where), false, nullptr});
            CHECK(without.finite[1] == 1 && without.token[1] != where, isa);
          }
    // NaN beside nothing but -inf; only -inf; a single token that may be drawn.
    std::vector<float> logits(100, -INFINITY);
    CHECK(sample(backend, logits, 100, coordinates(1, 1), {}).finite[0] == 0, isa);
    logits[50] = NAN;
    CHECK(sample(backend, logits, 100, coordinates(1, 1), {}).finite[0] == 0, isa);
    logits[50] = -3;
    for (float temperature : {0.0f, 1.0f}) {
      const Output out = sample(backend, logits, 100, coordinates(1, 1), Options{temperature, -1, true, nullptr});
      CHECK(out.finite[0] == 1 && out.token[0] == 50 && out.log_prob[0] == 0 && out.confidence[0] == 1 &&
                out.entropy[0] == 0,
            isa, " ", out.token[0]);
    }
  });
}

// Where a row lies in memory changes no bit of its result.
DULTRA_TEST(sampling_does_not_depend_on_alignment, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const int64_t vocab = 9000;
    Random random(13);
    const std::vector<float> row = normals(random, size_t(vocab), 2);
    const std::vector<rng::Coordinates> at = coordinates(1, 5);
    for (float temperature : {0.0f, 0.7f}) {
      Options options;
      options.temperature = temperature;
      options.tempered = true;
      options.excluded = 8200;
      const Output first = sample(backend, row, vocab, at, options);
      for (size_t shift : {1, 2, 3}) {
        std::vector<float> shifted(shift, 1e9f);
        shifted.insert(shifted.end(), row.begin(), row.end());
        const Output out = sample(backend, shifted.data() + shift, 1, vocab, at, options);
        CHECK(out.token[0] == first.token[0] && same_bits(&out.log_prob[0], &first.log_prob[0], 1) &&
                  same_bits(&out.confidence[0], &first.confidence[0], 1) &&
                  same_bits(&out.max_prob[0], &first.max_prob[0], 1) &&
                  same_bits(&out.entropy[0], &first.entropy[0], 1),
              isa, " T ", temperature, " shifted by ", shift);
      }
    }
  });
}

// Neither the number of threads nor the other rows change a bit of a row's result.
DULTRA_TEST(sampling_does_not_depend_on_launch_shape) {
  for (const std::string& isa : isas())
    for (float temperature : {0.0f, 0.3f, 1.5f}) {
      const int64_t vocab = 20001;
      const size_t rows = 9;
      Random random(12);
      const std::vector<float> logits = normals(random, rows * size_t(vocab), 2);
      const std::vector<rng::Coordinates> at = coordinates(rows, 4);
      Options options;
      options.temperature = temperature;
      options.tempered = true;
      if (temperature == 1.5f) {
        options.top_k = 5000;
        options.top_p = 0.9;
        options.scores = SampleScores::kFiltered;
      }
      const auto one_owner = make_backend(1, isa);
      Backend& one = *one_owner;
      const Output first = sample(one, logits, vocab, at, options);
      const auto same = [&](const Output& out, size_t i, size_t j) {
        return out.token[i] == first.token[j] && same_bits(&out.log_prob[i], &first.log_prob[j], 1) &&
               same_bits(&out.confidence[i], &first.confidence[j], 1) &&
               same_bits(&out.max_prob[i], &first.max_prob[j], 1) && same_bits(&out.entropy[i], &first.entropy[j], 1);
      };
      for (int threads : {2, 3, 8}) {
        const auto backend_owner = make_backend(threads, isa);
        Backend& backend = *backend_owner;
        const Output out = sample(backend, logits, vocab, at, options);
        for (size_t i = 0; i < rows; ++i) {
          CHECK(same(out, i, i), isa, " ", threads, " threads, row ", i);
          const std::vector<float> alone(logits.begin() + std::ptrdiff_t(i) * vocab,
                                         logits.begin() + std::ptrdiff_t(i + 1) * vocab);
          CHECK(same(sample(backend, alone, vocab, {at[i]}, options), 0, i), isa, " ", threads, " threads, row ", i,
                " alone");
        }
      }
    }
}

}  // namespace
}  // namespace test
}  // namespace dultra
