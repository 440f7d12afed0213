#!/usr/bin/env bash
# check-node.sh [DEVICE, default cuda] [--no-quickstart]: the package on a machine with a GPU, as scripts/gpu/pack.cjs
# packs it: dultra info, the checks and recorded cases of test/device, an evaluation, several processes by NCCL where that
# and mpirun are installed, and the quickstart. Needs only the driver.
set -uo pipefail
cd "$(dirname "$0")/../.."
device=cuda
quickstart=1
for argument in "$@"; do
  case $argument in
    --no-quickstart) quickstart=0 ;;
    -*) echo "usage: check-node.sh [DEVICE] [--no-quickstart]" >&2 && exit 2 ;;
    *) device=$argument ;;
  esac
done
# The packed Node; in a clone, that of the PATH.
node=./node
[ -x "$node" ] || node=node
passed=0
failed=0
part() {
  local what=$1 begin
  shift
  echo "--- $what"
  begin=$(date +%s)
  if "$@"; then
    passed=$((passed + 1))
    echo "ok   $what ($(($(date +%s) - begin)) s)"
  else
    failed=$((failed + 1))
    echo "FAIL $what (exit code $?)"
  fi
}
dultra() { "$node" dist/cli/main.js "$@"; }
evaluate() {
  local out
  # Greedy decoding is the same on every device: accuracy and passes equal the CPU's.
  out=$(mktemp -d)
  dultra eval -q --device "$1" --count 64 --samplers planner,confidence:0.9 --out "$out/here.json" >/dev/null &&
    dultra eval -q --device cpu --count 64 --samplers planner,confidence:0.9 --out "$out/cpu.json" >/dev/null &&
    "$node" -e '
      const { readFileSync } = require("node:fs");
      const read = (file) => {
        const { results } = JSON.parse(readFileSync(file, "utf8"));
        return results.map(({ name, accuracy, nfe }) => ({ name, accuracy, nfe: nfe.mean }));
      };
      const [here, cpu] = process.argv.slice(1).map(read);
      console.table(here);
      // A near-tie may be decided otherwise: one prompt of the 64.
      const near = here.every(
        ({ accuracy, nfe }, i) =>
          Math.abs(accuracy - cpu[i].accuracy) <= 1 / 64 && Math.abs(nfe / cpu[i].nfe - 1) <= 0.02,
      );
      if (!near || here.length !== 2) {
        console.error("on the CPU:");
        console.table(cpu);
        process.exit(1);
      }' "$out/here.json" "$out/cpu.json"
  local code=$?
  rm -rf "$out"
  return $code
}
part "dultra info" dultra info
part "checks and recorded cases on $device" "$node" test/device/run.cjs "$device"
part "dultra eval on $device" evaluate "$device"
part "several processes by NCCL (it says where it was skipped)" "$node" test/device/ranks.cjs
[ $quickstart -eq 0 ] || part "quickstart" "$node" scripts/quickstart.cjs
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
