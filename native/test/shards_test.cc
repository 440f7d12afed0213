// The optimiser's state split over ranks, which are threads here that take turns: between exchanges one of them runs.
#include <condition_variable>
#include <deque>
#include <thread>

#include "harness.h"
#include "model/memory_plan.h"
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
  explicit Job(int ranks) : ranks(ranks), begun(size_t(ranks), 0) {}
  const int ranks;
  Turn turn;
  std::condition_variable_any all_here;
  int arrived = 0, round = 0;
  std::vector<void*> given;
  // Sums that some ranks have begun, from number `ended` + 1 on: each rank's array, and what adds them up.
  struct Sum {
    std::vector<void*> given;
    int64_t n;
    int root, arrived = 0;
  };
  std::deque<Sum> sums;
  int64_t ended = 0;
  std::vector<int64_t> begun;  // by each rank

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

template <typename T>
void add_up(const std::vector<void*>& given, int64_t n, int root) {
  std::vector<T> total(size_t(n), T(0));
  for (void* one : given)
    for (int64_t i = 0; i < n; ++i) total[size_t(i)] += static_cast<const T*>(one)[i];
  for (size_t rank = 0; rank < given.size(); ++rank)
    if (root == kEveryRank || int(rank) == root) std::copy(total.begin(), total.end(), static_cast<T*>(given[rank]));
}

class RankOfJob : public Communicator {
 public:
  RankOfJob(Job& job, int rank, std::unique_lock<Turn>& turn) : job_(job), rank_(rank), turn_(turn) {}
  int rank() const override { return rank_; }
  int size() const override { return job_.ranks; }
  void all_reduce_sum(float* x, int64_t n) override { sum(x, n, kEveryRank); }
  void all_reduce_sum(int64_t* x, int64_t n) override { sum(x, n, kEveryRank); }
  void reduce_sum(float* x, int64_t n, int root) override { sum(x, n, root); }
  void reduce_sum(int64_t* x, int64_t n, int root) override { sum(x, n, root); }
  int64_t start_sum(float* x, int64_t n, int root, std::shared_ptr<void>) override { return start(x, n, root); }
  int64_t start_sum(int64_t* x, int64_t n, int root, std::shared_ptr<void>) override { return start(x, n, root); }
  void wait_sum(int64_t number) override {
    job_.all_here.wait(turn_, [&] { return job_.ended >= number; });
  }
  void broadcast(void* x, size_t bytes, int root) override {
    job_.meet(turn_, rank_, x, [&](const std::vector<void*>& given) {
      for (int r = 0; r < job_.ranks; ++r)
        if (r != root && bytes > 0) std::memcpy(given[size_t(r)], given[size_t(root)], bytes);
    });
  }
  void agree(Shared, int64_t) override {
    job_.meet(turn_, rank_, nullptr, [](const std::vector<void*>&) {});
  }

  int64_t begun() const { return job_.begun[size_t(rank_)]; }

 private:
  template <typename T>
  void sum(T* x, int64_t n, int root) {
    job_.meet(turn_, rank_, x, [&](const std::vector<void*>& given) { add_up<T>(given, n, root); });
  }
  // The last rank that begins a sum adds it up, while others are elsewhere.
  template <typename T>
  int64_t start(T* x, int64_t n, int root) {
    const int64_t number = ++job_.begun[size_t(rank_)];
    const size_t at = size_t(number - job_.ended - 1);
    if (at == job_.sums.size()) job_.sums.push_back({std::vector<void*>(size_t(job_.ranks)), n, root});
    Job::Sum& sum = job_.sums[at];
    CHECK(sum.n == n && sum.root == root, "rank ", rank_, " begins another sum ", number);
    sum.given[size_t(rank_)] = x;
    if (++sum.arrived == job_.ranks) {
      CHECK(at == 0, "sum ", number, " is whole before another");
      add_up<T>(sum.given, n, root);
      job_.sums.pop_front();
      ++job_.ended;
      job_.all_here.notify_all();
    }
    return number;
  }

  Job& job_;
  const int rank_;
  std::unique_lock<Turn>& turn_;
};

// Ranks of a device whose memory this process can read: the emulator's, or none.
class DeviceRankOfJob final : public RankOfJob {
 public:
  DeviceRankOfJob(Job& job, int rank, std::unique_lock<Turn>& turn, Backend& backend)
      : RankOfJob(job, rank, turn), queue_(backend.device_queue()) {}
  int64_t start_sum(float* x, int64_t n, int root, std::shared_ptr<void> owner) override {
    settle();
    return RankOfJob::start_sum(x, n, root, std::move(owner));
  }
  int64_t start_sum(int64_t* x, int64_t n, int root, std::shared_ptr<void> owner) override {
    settle();
    return RankOfJob::start_sum(x, n, root, std::move(owner));
  }
  void broadcast(void* x, size_t bytes, int root) override {
    settle();
    RankOfJob::broadcast(x, bytes, root);
  }

 private:
  // The emulator's operations so far are done when something is added beside them.
  void settle() {
    if (queue_) queue_->add([](void*) {});
  }
  DeviceQueue* const queue_;
};

#ifdef DULTRA_STAND_IN_NCCL
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

// What a job has trained: state as rank 0 gets it, and the weights of every rank's model.
struct Trained {
  std::vector<NamedTensor> state;
  std::vector<std::vector<NamedTensor>> weights;
  std::vector<size_t> bytes;
};

constexpr int kMicroBatches = 3, kSteps = 2;

struct JobOptions {
  bool on_device = false;  // gradients are exchanged where they are, where the device allows it
  int steps = kSteps;
  std::vector<NamedTensor> begin;  // state to go on from, at step kSteps; may be empty
};

Trained train_job(const RandomCheckpoint& checkpoint, const LoadOptions& weights, const TrainerOptions& options,
                  int ranks, const JobOptions& more = {}) {
  const std::vector<NamedTensor>& begin = more.begin;
  Job job(ranks);
  Trained out;
  out.weights.resize(size_t(ranks));
  out.bytes.resize(size_t(ranks));
  const auto run = [&](int rank) {
    std::unique_lock<Turn> turn(job.turn);
    const auto model = checkpoint.load(1, weights);
    const auto communicator = std::make_shared<RankOfJob>(job, rank, turn);
    Trainer trainer(model, options, communicator);
    if (more.on_device && (kEmulated || !model->backend().device_queue()))
      trainer.connect([&](Backend& backend, const std::shared_ptr<Communicator>&) {
        return DeviceRanks{std::make_shared<DeviceRankOfJob>(job, rank, turn, backend), "1", ""};
      });
    const int first = begin.empty() ? 0 : kSteps;
    if (!begin.empty()) trainer.load_state(first, begin);
    for (int step = first; step < first + more.steps; ++step) {
      // Other ranks are at other places meanwhile; those without a micro-batch join.
      const int rounds = (kMicroBatches + ranks - 1) / ranks;
      for (int round = 0; round < rounds; ++round) {
        const int part = round * ranks + rank;
        const bool last = round + 1 == rounds;
        if (part >= kMicroBatches) {
          trainer.join_backward(last);
          continue;
        }
        Random random(uint64_t(step * kMicroBatches + part) + 21);
        train_micro_batch(trainer, model->config(), random, last);
      }
      if (ranks > 1) CHECK(communicator->begun() > 1, "nothing is exchanged before the update");
      train_update(trainer);
    }
    std::vector<NamedTensor> state = trainer.state();
    if (options.zero_stage > 0)
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

struct Variant {
  const char* name;
  DType held;
  bool tied;
  bool every_size;  // tried on 2, 3 and 4 ranks; else on 3
  TrainerOptions options;
};

// In fp32, with tied weights in bf16, and with adapters.
std::vector<Variant> variants() {
  std::vector<Variant> all(3, {"fp32", DType::kF32, false, true, {}});
  for (Variant& variant : all) variant.options.reduction = Reduction::kExact;
  all[1] = {"tied", DType::kBF16, true, false, all[0].options};
  all[1].options.moments = DType::kBF16;
  all[2] = {"adapters", DType::kBF16, false, false, all[0].options};
  all[2].options.lora = {2, 4, {"q_proj", "up_proj"}};
  return all;
}

RandomCheckpoint checkpoint_of(const Variant& variant) {
  ModelConfig config = small_config();
  config.weight_tying = variant.tied;
  return RandomCheckpoint(config, variant.held, 3);
}

}  // namespace

DULTRA_TEST(ranks_have_the_bits_of_one) {
  for (const Variant& variant : variants()) {
    const RandomCheckpoint checkpoint = checkpoint_of(variant);
    TrainerOptions options = variant.options;
    Trained split;
    for (int stage : {1, 2, 0}) {
      options.zero_stage = stage;
      const Trained alone = train_job(checkpoint, {}, options, 1);
      // Without a split, backward passes read masters, which are the weights where those are fp32.
      if (stage == 1)
        split = alone;
      else if (stage == 2 || variant.held == DType::kF32)
        CHECK(same(alone.state, split.state), variant.name, " stage ", stage, ": another state than of stage 1");
      for (int ranks : {3, 2, 4}) {
        if (ranks != 3 && !variant.every_size) continue;
        const Trained several = train_job(checkpoint, {}, options, ranks);
        CHECK(same(several.state, alone.state), variant.name, " stage ", stage, " ranks ", ranks, ": another state");
        for (const auto& weights : several.weights)
          CHECK(same(weights, alone.weights[0]), variant.name, " stage ", stage, " ranks ", ranks, ": other weights");
      }
      JobOptions on_device;
      on_device.on_device = true;
      const Trained exchanged = train_job(checkpoint, {}, options, 2, on_device);
      CHECK(same(exchanged.state, alone.state), variant.name, " stage ", stage, ": another state where it is");
      for (const auto& weights : exchanged.weights)
        CHECK(same(weights, alone.weights[0]), variant.name, " stage ", stage, ": other weights where they are");
      // From whole state, on another number of ranks.
      if (stage == 0) continue;
      JobOptions resumed;
      resumed.begin = alone.state;
      CHECK(same(train_job(checkpoint, {}, options, 3, resumed).state,
                 train_job(checkpoint, {}, options, 1, resumed).state),
            variant.name, " stage ", stage, ": resumed");
    }
  }
}

DULTRA_TEST(sums_of_ranks_are_the_same_from_run_to_run) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 3);
  for (int stage : {0, 1, 2}) {
    TrainerOptions options;
    options.zero_stage = stage;
    const Trained one = train_job(checkpoint, {}, options, 1), three = train_job(checkpoint, {}, options, 3);
    CHECK(same(three.state, train_job(checkpoint, {}, options, 3).state), "stage ", stage);
    // With split gradients one rank adds up these micro-batches in the order in which this job adds up its ranks.
    if (stage < 2) CHECK(!same(three.state, one.state), "stage ", stage, ": the bits of one rank");
    double size = 0, difference = 0;
    for (size_t i = 0; i < one.state.size(); ++i)
      for (size_t j = 0; j < one.state[i].data.size(); ++j) {
        const double a = one.state[i].data[j], b = three.state[i].data[j];
        size += a * a;
        difference += (a - b) * (a - b);
      }
    CHECK(difference <= 1e-9 * size, "stage ", stage, ": ", std::sqrt(difference / size), " of rounding");
    // Added up where they are, in the same order.
    JobOptions on_device;
    on_device.on_device = true;
    CHECK(same(three.state, train_job(checkpoint, {}, options, 3, on_device).state), "stage ", stage, ": where it is");
  }
}

// After one update AdamW's first moment is the gradient, times a constant.
DULTRA_TEST(gradients_of_ranks_agree_to_a_millionth) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 3);
  JobOptions once;
  once.steps = 1;
  TrainerOptions options;
  const Trained one = train_job(checkpoint, {}, options, 1, once);
  for (int stage : {0, 2}) {
    options.zero_stage = stage;
    for (int ranks : {2, 3}) {
      const Trained several = train_job(checkpoint, {}, options, ranks, once);
      double largest = 0, difference = 0;
      for (size_t i = 0; i < one.state.size(); ++i) {
        if (one.state[i].name.rfind("exp_avg.", 0) != 0) continue;
        for (size_t j = 0; j < one.state[i].data.size(); ++j) {
          const double a = one.state[i].data[j], b = several.state[i].data[j];
          largest = std::max(largest, std::abs(a));
          difference = std::max(difference, std::abs(a - b));
        }
      }
      CHECK(largest > 0 && difference <= 1e-6 * largest, "stage ", stage, ", ", ranks, " ranks: ", difference / largest,
            " of the largest gradient");
    }
  }
}

// What a rank allocates is what its plan says, to 5 %.
DULTRA_TEST(split_memory_is_that_of_the_plan) {
  for (const Variant& variant : variants()) {
    const RandomCheckpoint checkpoint = checkpoint_of(variant);
    size_t whole = 0;
    for (int stage : {0, 1, 2})
      for (int ranks : {1, 2, 3, 4})
        for (Reduction reduction : {Reduction::kSum, Reduction::kExact}) {
          MemoryRequest request;
          request.config = checkpoint.config;
          request.trainer = variant.options;
          request.trainer.zero_stage = stage;
          request.trainer.reduction = reduction;
          request.ranks = ranks;
          request.storage.assign(tensor_table(request.config).size(), variant.held);
          Job job(ranks);
          std::unique_lock<Turn> turn(job.turn);
          for (int rank = 0; rank < ranks; ++rank) {
            const auto model = checkpoint.load(1);
            request.on_device = std::string(model->backend().name()).rfind("cuda", 0) == 0;
            const MemoryPlan plan = plan_memory(request);
            const Trainer trainer(model, request.trainer, std::make_shared<RankOfJob>(job, rank, turn));
            const auto planned =
                double(plan.masters + plan.gradients + plan.moments + plan.sums.fixed + plan.sums.exchange);
            const auto taken = double(trainer.bytes());
            CHECK(std::abs(taken / planned - 1) < 0.05, variant.name, " stage ", stage, " rank ", rank, " of ", ranks,
                  ": ", taken, " bytes, planned ", planned);
            if (ranks == 4 && reduction == Reduction::kSum && rank == 0) {
              // Adapters are less than the planner, which is one bucket.
              CHECK(stage == 0 || trainer.bytes() < whole || (stage == 2 && variant.options.lora.rank > 0),
                    variant.name, " stage ", stage, ": no less memory");
              whole = trainer.bytes();
            }
          }
        }
  }
}

}  // namespace test
}  // namespace dultra
