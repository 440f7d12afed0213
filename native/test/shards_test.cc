// The optimiser's state split over ranks, which are threads here that take turns: between exchanges one of them runs.
#include <condition_variable>
#include <thread>

#include "harness.h"
#include "model/memory_plan.h"
#include "model/trainer.h"
#include "model_fixture.h"

namespace dultra {
namespace test {

namespace {

// One rank works at a time. Not a plain mutex: a rank waits for its turn within its trainer's lock, too, which no other
// rank takes, and a checker of lock orders would see a cycle.
class Turn {
 public:
  void lock() {
    std::unique_lock<std::mutex> lock(mutex_);
    free_.wait(lock, [&] { return !taken_; });
    taken_ = true;
  }
  void unlock() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      taken_ = false;
    }
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;
};

// What the ranks of a job share.
struct Job {
  explicit Job(int ranks) : ranks(ranks) {}
  const int ranks;
  Turn turn;
  std::condition_variable_any all_here;
  int arrived = 0, round = 0;
  std::vector<void*> given;

  // Runs `exchange` of all ranks' arrays once every rank is here. The caller has the turn.
  template <typename Fn>
  void meet(std::unique_lock<Turn>& turn_of_rank, int rank, void* data, Fn&& exchange) {
    given.resize(size_t(ranks));
    given[size_t(rank)] = data;
    const int own_round = round;
    if (++arrived == ranks) {
      exchange(given);
      arrived = 0;
      ++round;
      all_here.notify_all();
    }
    all_here.wait(turn_of_rank, [&] { return round != own_round; });
  }
};

class RankOfJob final : public Communicator {
 public:
  RankOfJob(Job& job, int rank, std::unique_lock<Turn>& turn) : job_(job), rank_(rank), turn_(turn) {}
  int rank() const override { return rank_; }
  int size() const override { return job_.ranks; }
  void all_reduce_sum(float* x, int64_t n) override { sum(x, n, -1); }
  void all_reduce_sum(int64_t* x, int64_t n) override { sum(x, n, -1); }
  void reduce_sum(float* x, int64_t n, int root) override { sum(x, n, root); }
  void reduce_sum(int64_t* x, int64_t n, int root) override { sum(x, n, root); }
  void broadcast(void* x, size_t bytes, int root) override {
    job_.meet(turn_, rank_, x, [&](const std::vector<void*>& given) {
      for (int r = 0; r < job_.ranks; ++r)
        if (r != root && bytes > 0) std::memcpy(given[size_t(r)], given[size_t(root)], bytes);
    });
  }
  void agree(Shared, int64_t) override {
    job_.meet(turn_, rank_, nullptr, [](const std::vector<void*>&) {});
  }

 private:
  template <typename T>
  void sum(T* x, int64_t n, int root) {
    job_.meet(turn_, rank_, x, [&](const std::vector<void*>& given) {
      std::vector<T> total(size_t(n), T(0));
      for (void* one : given)
        for (int64_t i = 0; i < n; ++i) total[size_t(i)] += static_cast<const T*>(one)[i];
      for (int r = 0; r < job_.ranks; ++r)
        if (root < 0 || r == root) std::copy(total.begin(), total.end(), static_cast<T*>(given[size_t(r)]));
    });
  }

  Job& job_;
  const int rank_;
  std::unique_lock<Turn>& turn_;
};

// What a job has trained: state as rank 0 gets it, and the weights of every rank's model.
struct Trained {
  std::vector<NamedTensor> state;
  std::vector<std::vector<NamedTensor>> weights;
  std::vector<size_t> bytes;
};

constexpr int kMicroBatches = 3, kSteps = 2;

// `begin` (may be empty): state to go on from, at step kSteps.
Trained train_job(const RandomCheckpoint& checkpoint, const LoadOptions& weights, const TrainerOptions& options,
                  int ranks, const std::vector<NamedTensor>& begin = {}) {
  Job job(ranks);
  Trained out;
  out.weights.resize(size_t(ranks));
  out.bytes.resize(size_t(ranks));
  const auto run = [&](int rank) {
    std::unique_lock<Turn> turn(job.turn);
    const auto model = checkpoint.load(1, weights);
    Trainer trainer(model, options, std::make_shared<RankOfJob>(job, rank, turn));
    const int first = begin.empty() ? 0 : kSteps;
    if (!begin.empty()) trainer.load_state(first, begin);
    for (int step = first; step < first + kSteps; ++step) {
      for (int part = rank; part < kMicroBatches; part += ranks) {
        Random random(uint64_t(step * kMicroBatches + part) + 21);
        const ScoreResult scored = trainer.score(random_score(random, model->config()), nullptr);
        BackwardRequest upstream;
        for (size_t i = 0; i < scored.log_likelihoods.size(); ++i)
          upstream.dlog_likelihoods.push_back(float(random.normal()) * 0.1f);
        trainer.backward(upstream, nullptr);
      }
      OptimizerStep update;
      update.base_lr = update.planner_lr = 1e-3;
      update.weight_decay = 0.1;
      update.max_grad_norm = 1;
      trainer.step(update);
    }
    std::vector<NamedTensor> state = trainer.state();
    CHECK((rank == 0) == !state.empty(), "rank ", rank, " has ", state.size(), " tensors of state");
    if (rank == 0) out.state = std::move(state);
    out.weights[size_t(rank)] = model->weights().read_all(nullptr);
    out.bytes[size_t(rank)] = trainer.bytes();
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  return out;
}

bool same(const std::vector<NamedTensor>& a, const std::vector<NamedTensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].name != b[i].name || a[i].data.size() != b[i].data.size() ||
        !same_bits(a[i].data.data(), b[i].data.data(), a[i].data.size()))
      return false;
  return true;
}

}  // namespace

DULTRA_TEST(split_state_has_the_bits_of_one_rank) {
  for (int variant = 0; variant < 3; ++variant) {
    const DType held = variant == 0 ? DType::kF32 : DType::kBF16;
    ModelConfig config = small_config();
    config.weight_tying = variant == 1;
    const RandomCheckpoint checkpoint(config, held, 3);
    TrainerOptions options;
    options.reduction = Reduction::kExact;
    options.zero_stage = 1;
    options.moments = variant == 1 ? DType::kBF16 : DType::kF32;
    if (variant == 2) options.lora = {2, 4, {"q_proj", "up_proj"}};
    const Trained alone = train_job(checkpoint, {}, options, 1), split = train_job(checkpoint, {}, options, 3);
    CHECK(same(split.state, alone.state), "variant ", variant, ": another state");
    for (const auto& weights : split.weights)
      CHECK(same(weights, alone.weights[0]), "variant ", variant, ": other weights");
    CHECK(split.bytes[0] < alone.bytes[0], "variant ", variant, ": no less memory");
    // From whole state, on another number of ranks.
    CHECK(same(train_job(checkpoint, {}, options, 3, alone.state).state,
               train_job(checkpoint, {}, options, 1, split.state).state),
          "variant ", variant, ": resumed");
    // Without a split, backward passes read masters, which are the weights where those are fp32.
    options.zero_stage = 0;
    if (held == DType::kF32)
      CHECK(same(train_job(checkpoint, {}, options, 1).state, alone.state), "variant ", variant, ": unsplit");
  }
}

}  // namespace test
}  // namespace dultra
