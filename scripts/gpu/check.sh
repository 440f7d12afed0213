#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU, the CUDA toolkit, CMake and a C++ compiler; needs neither Node nor a network;
# compares with PyTorch where it is installed. In under 30 minutes: builds the plugin for this GPU alone; then what is
# correct: recorded cases, every native test on the device, the bits of products in two processes, compute-sanitizer on
# every kind of kernel. Where something of that is wrong it stops, since how fast a wrong result comes says nothing
# (--measure goes on). Then what is fast: benchmarks, PyTorch's, and the time of each operation of a step. Writes
# bench/results/<date>-<gpu>.{json,md} (or to the folder $OUT), with what was predicted beside what was measured; without
# Node, what they are made of to <date>-<gpu>.logs, for node scripts/gpu/report.cjs elsewhere.
# The exit code says whether everything is correct; the report says how fast it is.
set -uo pipefail
cd "$(dirname "$0")/../.."
begin=$(date +%s)
allowed=1740
measure_all=0
[ "${1-}" = --measure ] && measure_all=1
# Time limit of a part in seconds: $1, or what is left.
limit() {
  local left=$((allowed - ($(date +%s) - begin)))
  echo $((left < 5 ? 5 : left < $1 ? left : $1))
}
die() {
  echo "gpu-check: $*" >&2
  exit 2
}
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null || die "nvcc was not found: the CUDA toolkit is needed"
command -v cmake >/dev/null || die "cmake was not found"
command -v nvidia-smi >/dev/null || die "nvidia-smi was not found: an NVIDIA driver is needed"
query() { nvidia-smi --query-gpu="$1" --format=csv,noheader | head -1; }
gpu=$(query name)
[ -n "$gpu" ] || die "nvidia-smi names no GPU"
capability=$(query compute_cap | tr -d .)
case $capability in
  90) target=90a-real ;;
  80 | 86 | 89) target=80-real ;;
  100 | 103) target=100-real ;;
  12*) target=120-real ;;
  *) target=80 ;;
esac
name=$(date +%Y-%m-%d)-$(echo "$gpu" | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
out=${OUT:-bench/results}
logs=build/gpu/logs
mkdir -p "$out" "$logs"
rm -f "$logs"/*
touch "$logs/measurements" "$logs/times"
status=0
fact() { printf '%s\t%s\n' "$1" "$2" >>"$logs/facts"; }
fact gpu "$gpu"
fact date "$(date +%Y-%m-%d)"
fact driver "$(query driver_version)"
fact toolkit "$(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"

echo "--- build for $gpu ($target)"
cmake --preset gpu -DDULTRA_CUDA_ARCHITECTURES="$target" >"$logs/build" 2>&1 &&
  cmake --build --preset gpu --parallel "$(nproc)" --target dultra_cuda dultra_gpu_tests dultra_bench_cuda >>"$logs/build" 2>&1 ||
  { tail -50 "$logs/build"; die "the build failed"; }
fact build "$(($(date +%s) - begin)) s"

# Runs tests with their output in a log; the fact is its last line.
tests() {
  local what=$1 log=$2 seconds=$3
  shift 3
  echo "--- $what"
  timeout "$(limit "$seconds")" build/gpu/dultra_gpu_tests "$@" >"$logs/$log" 2>&1
  local code=$? last
  grep -v "^ok" "$logs/$log" | tail -40
  last=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$logs/$log" | tail -1)
  [ $code -eq 0 ] || status=1
  fact "$what" "${last:-did not end (exit code $code, after $(grep -c '^ok' "$logs/$log") tests)}"
}
DULTRA_VERBOSE=1 tests "recorded cases on the device" golden 120 --filter golden
tests "native tests on the device" tests 400
skipped=$(sed -n 's/^skipped: NCCL was not tried, //p' "$logs/tests" | head -1)
fact "NCCL with one rank" "${skipped:+skipped: }${skipped:-among the native tests}"
# After an error that the device does not recover from, every later test of the process fails: each test that did not
# pass runs again by itself.
again=$(comm -23 <(build/gpu/dultra_gpu_tests --list | sort) <(sed -n 's/^ok \([^ ]*\) .*/\1/p' "$logs/tests" | sort))
if [ -n "$again" ]; then
  echo "--- by themselves, the tests that did not pass"
  alone=0 failing=
  until=$(($(date +%s) + 60))
  for test in $again; do
    [ "$(date +%s)" -lt $until ] || { failing="$failing (the rest was not tried)" && break; }
    if timeout "$(limit 30)" build/gpu/dultra_gpu_tests --filter "$test" >"$logs/alone-$test" 2>&1; then
      alone=$((alone + 1))
    else
      failing="$failing $test"
      tail -12 "$logs/alone-$test"
    fi
  done
  fact "tests run again by themselves" "$alone pass; fail:${failing:- none}"
fi

# Two processes have to choose the same algorithms, and to give the same bits.
for run in 1 2; do
  DULTRA_VERBOSE=1 tests "bits of products, process $run" "products-$run" 180 --filter cuda_product_rows_are_independent
  grep '^product' "$logs/products-$run" >"$logs/chosen-$run"
done
if [ -s "$logs/chosen-1" ] && cmp -s "$logs/chosen-1" "$logs/chosen-2"; then
  fact "bits of products, between processes" "$(grep digest "$logs/chosen-1")"
  while read -r _ chosen; do fact "product ${chosen%%:*}" "${chosen#*: }"; done < <(grep '^product ' "$logs/chosen-1")
else
  status=1
  fact "bits of products, between processes" "they differ"
  diff "$logs/chosen-1" "$logs/chosen-2"
fi
# racecheck does not know how wgmma orders its accesses.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck synccheck initcheck racecheck; do
    filters="cuda_attention_on_tensor_cores cuda_attention_split_keys cuda_attention_of_one_chunk cuda_rows_begin_anywhere sampling_equals"
    [ $tool = racecheck ] && filters="adamw_split unmask_new"
    [ $tool = memcheck ] && filters="$filters adamw_split unmask_new"
    for filter in $filters; do
      what="compute-sanitizer $tool, $filter"
      echo "--- $what"
      timeout "$(limit 60)" compute-sanitizer --tool "$tool" --error-exitcode 9 build/gpu/dultra_gpu_tests --filter "$filter" >"$logs/sanitizer" 2>&1
      code=$?
      if [ $code -eq 9 ]; then
        status=1
        tail -40 "$logs/sanitizer"
      fi
      summary=$(grep -E 'SUMMARY' "$logs/sanitizer" | tail -1 | sed 's/^=* *//')
      fact "$what" "${summary:-does not end in 60 s, or does not work here (exit code $code)}"
    done
  done
else
  fact compute-sanitizer "not installed"
fi

if [ $status -ne 0 ] && [ $measure_all -eq 0 ]; then
  echo "--- not measured: something is wrong (--measure goes on)"
  fact measurements "none: something is wrong"
else
  echo "--- benchmarks"
  timeout "$(limit 400)" build/gpu/dultra_bench_cuda >"$logs/measurements" 2>"$logs/bench-errors"
  code=$?
  if [ $code -ne 0 ]; then
    status=1
    fact benchmarks "exit code $code: $(tail -1 "$logs/bench-errors" | cut -c1-200)"
  fi
  python=
  for candidate in python3 /usr/bin/python3; do
    "$candidate" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && python=$candidate && break
  done
  if [ -n "$python" ]; then
    echo "--- PyTorch"
    fact PyTorch "$("$python" -c 'import torch; print(torch.__version__)')"
    timeout "$(limit 300)" "$python" bench/torch/gpu.py >>"$logs/measurements" 2>"$logs/torch-errors" ||
      fact "PyTorch's benchmarks" "exit code $?: $(tail -1 "$logs/torch-errors" | cut -c1-200)"
  else
    fact PyTorch "not there, or without CUDA: nothing to compare with"
  fi
  echo "--- time of each operation"
  DULTRA_TRACE=time timeout "$(limit 120)" build/gpu/dultra_bench_cuda --only step >/dev/null 2>"$logs/times"
  tail -60 "$logs/times"
fi
fact took "$(($(date +%s) - begin)) s"
fact "exit code" "$status"
if command -v node >/dev/null; then
  node scripts/gpu/report.cjs "$logs" "$out/$name" || status=1
  cat "$out/$name.md"
else
  mkdir -p "$out/$name.logs"
  cp "$logs/facts" "$logs/measurements" "$logs/golden" "$logs/times" "$out/$name.logs"
  cat "$logs/facts"
  echo "no Node here: the report is made by node scripts/gpu/report.cjs $out/$name.logs $out/$name"
fi
exit "$status"
