#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU, the CUDA toolkit, CMake and a C++ compiler; needs neither Node nor a network;
# compares with PyTorch where it is installed. In under 8 minutes: builds the plugin for this GPU alone, runs every
# native test on it (with the recorded cases of the reference), then the benchmarks, PyTorch's, and compute-sanitizer on
# small shapes. Writes bench/results/<date>-<gpu>.{json,md} (or to the folder $OUT); without Node, what they are made of
# to <date>-<gpu>.logs, for node scripts/gpu/report.cjs elsewhere.
# The exit code says whether everything is correct; the report says how fast it is.
set -uo pipefail
cd "$(dirname "$0")/../.."
begin=$(date +%s)
allowed=470
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
touch "$logs/measurements"
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
DULTRA_VERBOSE=1 tests "recorded cases on the device" golden 60 --filter golden
tests "native tests on the device" tests 150
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

echo "--- benchmarks"
timeout "$(limit 130)" build/gpu/dultra_bench_cuda >"$logs/measurements" 2>"$logs/bench-errors"
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
  timeout "$(limit 130)" "$python" bench/torch/gpu.py >>"$logs/measurements" 2>"$logs/torch-errors" ||
    fact "PyTorch's benchmarks" "exit code $?: $(tail -1 "$logs/torch-errors" | cut -c1-200)"
else
  fact PyTorch "not there, or without CUDA: nothing to compare with"
fi
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    for filter in adamw_split unmask_new; do
      what="compute-sanitizer $tool, $filter"
      echo "--- $what"
      timeout "$(limit 25)" compute-sanitizer --tool "$tool" --error-exitcode 9 build/gpu/dultra_gpu_tests --filter "$filter" >"$logs/sanitizer" 2>&1
      code=$?
      if [ $code -eq 9 ]; then
        status=1
        tail -40 "$logs/sanitizer"
      fi
      summary=$(grep -E 'SUMMARY' "$logs/sanitizer" | tail -1 | sed 's/^=* *//')
      fact "$what" "${summary:-does not work here (exit code $code)}"
    done
  done
else
  fact compute-sanitizer "not installed"
fi
fact took "$(($(date +%s) - begin)) s"
fact "exit code" "$status"
if command -v node >/dev/null; then
  node scripts/gpu/report.cjs "$logs" "$out/$name" || status=1
  cat "$out/$name.md"
else
  mkdir -p "$out/$name.logs"
  cp "$logs/facts" "$logs/measurements" "$logs/golden" "$out/$name.logs"
  cat "$logs/facts"
  echo "no Node here: the report is made by node scripts/gpu/report.cjs $out/$name.logs $out/$name"
fi
exit "$status"
