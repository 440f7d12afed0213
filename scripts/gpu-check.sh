#!/usr/bin/env bash
# What there is to check on a machine with an NVIDIA GPU, the CUDA toolkit, CMake and a C++ compiler; no Node, no network. Builds the plugin for
# this GPU alone, runs every native test on it, compute-sanitizer on small shapes, then the benchmarks (beside PyTorch, where there is one), and
# writes bench/results/<date>-<gpu>.{json,md}.
set -euo pipefail
cd "$(dirname "$0")/.."
begin=$(date +%s)
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
case $capability in
  90) target=90a-real ;;
  80 | 86 | 89) target=80-real ;;
  100 | 103) target=100-real ;;
  12*) target=120-real ;;
  *) target=80 ;;
esac
name=$(date +%Y-%m-%d)-$(echo "$gpu" | tr '[:upper:] ' '[:lower:]-' | tr -cd 'a-z0-9-')
out=${OUT:-bench/results}
mkdir -p "$out"
echo "--- build for $gpu ($target)"
cmake -S . -B build/gpu -DDULTRA_CUDA=ON -DDULTRA_TESTS=ON -DDULTRA_BENCH=ON -DDULTRA_CUDA_ARCHITECTURES="$target" -DDULTRA_OUT="$PWD/build/gpu" \
  -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build build/gpu --parallel "$(nproc)" --target dultra_cuda dultra_gpu_tests dultra_bench_cuda >"$out/$name-build.log" 2>&1 ||
  { tail -50 "$out/$name-build.log"; exit 1; }
echo "--- native tests on the device"
status=0
timeout 240 build/gpu/dultra_gpu_tests >"$out/$name-tests.log" 2>&1 || status=$?
grep -v "^ok" "$out/$name-tests.log" | tail -40 || true
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    echo "--- compute-sanitizer, $tool"
    timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 build/gpu/dultra_gpu_tests --filter matmul_stacks 2>&1 | tail -3 || true
  done
fi
echo "--- benchmarks"
timeout 120 build/gpu/dultra_bench_cuda | tee "$out/$name.json" || status=1
if command -v python3 >/dev/null && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  timeout 150 python3 bench/torch/gpu.py | tee -a "$out/$name.json" || true
fi
{
  echo "# $gpu, $(date +%Y-%m-%d)"
  echo
  echo "\`scripts/gpu-check.sh\`, driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1), $(nvcc --version | tail -1)."
  echo "Native tests: $(tail -1 "$out/$name-tests.log")."
  echo
  echo "| what | us | 10 % | 90 % | TFLOP/s | GB/s |"
  echo "|---|---|---|---|---|---|"
  sed -n 's/.*"name":"\([^"]*\)","us":\([^,]*\),"us_p10":\([^,]*\),"us_p90":\([^,]*\),"tflops":\([^,]*\),"gb_per_s":\([^}]*\)}.*/| \1 | \2 | \3 | \4 | \5 | \6 |/p' \
    "$out/$name.json"
} >"$out/$name.md"
# Lines become one document.
sed -e '1s/^/[/' -e '$!s/$/,/' -e '$s/$/]/' "$out/$name.json" >"$out/$name.tmp" && mv "$out/$name.tmp" "$out/$name.json"
cat "$out/$name.md"
echo "took $(($(date +%s) - begin)) s, tests exited with $status"
exit "$status"
