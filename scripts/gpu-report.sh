#!/usr/bin/env bash
# The report of scripts/gpu-check.sh: gpu-report.sh LOGS OUT reads LOGS/facts (name, tab, value), LOGS/measurements (JSON lines of
# dultra_bench_cuda and bench/torch/gpu.py) and LOGS/golden, and writes OUT.json and OUT.md. Every bar is printed with what was measured, its goal,
# and pass, fail or "not measured".
set -euo pipefail
logs=$1
out=$2

# The goals, where they come from beside them. Ratios are "theirs / ours" in time: above 1 we are faster.
goals='
attention forward|ratio|0.50|the best of PyTorch SDPA (flash, cuDNN), T 512 to 4096, D 128
attention backward|ratio|0.40|likewise
bandwidth:|share|0.85|of what a copy reaches in the same run; arrays over 50 MB
sampler, 32 rows, temperature 0.1|us|20|one read of 16 MB and a second launch
denoising step|us|13500|8B, T 512, B 1, uncached: 10.3 ms is the floor of 788 TFLOP/s and 4.3 TB/s (H200)
denoising step|ratio|1.50|eager PyTorch, as the reference does it
training step|us|27600000|8B, 12 x 40 x 512: 1.5 times the floor of 18.4 s for the same device
training step|ratio|1.00|eager PyTorch, as the reference does it
'

awk -v goals="$goals" -v out="$out" -v facts_file="$logs/facts" -v golden_file="$logs/golden" '
function field(line, key,    at, rest) {
  at = index(line, "\"" key "\":")
  if (!at) return ""
  rest = substr(line, at + length(key) + 3)
  if (substr(rest, 1, 1) == "\"") {
    rest = substr(rest, 2)
    return substr(rest, 1, index(rest, "\"") - 1)
  }
  sub(/[,}].*/, "", rest)
  return rest
}
# Letter by letter: awks differ in what gsub makes of a backslash.
function json_text(text,    i, c, quoted) {
  for (i = 1; i <= length(text); i++) {
    c = substr(text, i, 1)
    quoted = quoted (c == "\"" || c == "\\" ? "\\" c : c < " " ? " " : c)
  }
  return "\"" quoted "\""
}
function time_text(us) {
  if (us >= 1e6) return sprintf("%.2f s", us / 1e6)
  if (us >= 1e3) return sprintf("%.2f ms", us / 1e3)
  return sprintf("%.1f us", us)
}
function bar(what, measured, goal, verdict, why) {
  bars_md = bars_md "| " what " | " measured " | " goal " | " (verdict == "fail" ? "**fail**" : verdict) " | " why " |\n"
  bars_json = bars_json (bars_json == "" ? "" : ",\n") "  {\"bar\":" json_text(what) ",\"measured\":" json_text(measured) ",\"goal\":" json_text(goal) ",\"verdict\":\"" verdict "\"}"
  count[verdict]++
}
# What of a goal was measured for one case.
function judge(name, kind, goal, why,    ratio, share) {
  if (kind == "ratio") {
    if (!(name in ours) || !(name in theirs)) return bar(name " against PyTorch", "", ">= " goal, "not measured", why)
    ratio = theirs[name] / ours[name]
    return bar(name " against PyTorch", sprintf("%.2f (%s, %s %s)", ratio, time_text(ours[name]), whose[name], time_text(theirs[name])), ">= " goal, ratio >= goal ? "pass" : "fail", why)
  }
  if (!(name in ours)) return bar(name, "", kind == "us" ? "<= " time_text(goal) : ">= " goal, "not measured", why)
  if (kind == "us") return bar(name, time_text(ours[name]), "<= " time_text(goal), ours[name] <= goal ? "pass" : "fail", why)
  if (!copy) return bar(name, "", ">= " goal, "not measured", why)
  share = speed[name] / copy
  bar(name, sprintf("%.2f (%d of %d GB/s)", share, speed[name], copy), ">= " goal, share >= goal ? "pass" : "fail", why)
}
{
  lines = lines (lines == "" ? "" : ",\n") "  " $0
  if ($0 ~ /"skipped":/) {
    skips_md = skips_md "- " field($0, "skipped") ", " field($0, "by") ": " field($0, "why") "\n"
    next
  }
  name = field($0, "case")
  if (name == "") {
    machines = machines (machines == "" ? "" : "; ") field($0, "device") (field($0, "isa") == "" ? "" : ", " field($0, "isa")) (field($0, "torch") == "" ? "" : ", PyTorch " field($0, "torch"))
    next
  }
  by = field($0, "by")
  us = field($0, "us") + 0
  if (by == "dultra") {
    ours[name] = us
    speed[name] = field($0, "gb_per_s") + 0
    order[++cases] = name
  } else if (us > 0 && (!(name in theirs) || us < theirs[name])) {
    theirs[name] = us
    whose[name] = by
  }
  # The faster of the two copies is what the device can do.
  if (name == "copy" && field($0, "gb_per_s") + 0 > copy) copy = field($0, "gb_per_s") + 0
  tflops = field($0, "tflops")
  rate = field($0, "gb_per_s")
  table_md = table_md "| " name " | " by " | " time_text(us) " | " time_text(field($0, "us_p10") + 0) " | " time_text(field($0, "us_p90") + 0) " | " (tflops > 0 ? tflops : "") " | " (rate > 0 ? rate : "") " | " field($0, "note") " |\n"
}
END {
  while ((getline fact < facts_file) > 0) {
    at = index(fact, "\t")
    key = substr(fact, 1, at - 1)
    value = substr(fact, at + 1)
    facts_json = facts_json (facts_json == "" ? "" : ",\n") "  " json_text(key) ": " json_text(value)
    if (key == "gpu") gpu = value
    else if (key == "date") date = value
    else facts_md = facts_md "| " key " | " value " |\n"
  }
  while ((getline line < golden_file) > 0) if (line ~ /^  [a-z0-9_]+ in (fp32|bf16):|^  bf16: [0-9]+ of/) golden_md = golden_md "- " substr(line, 3) "\n"
  n = split(goals, rows, "\n")
  for (i = 1; i <= n; i++) {
    if (split(rows[i], g, "|") < 4) continue
    found = 0
    # A goal is for the case of that name, or for all whose name begins so.
    for (c = 1; c <= cases; c++) {
      if (order[c] != g[1] && !((g[1] ~ /^attention / || g[1] ~ /:$/) && index(order[c], g[1]) == 1)) continue
      judge(order[c], g[2], g[3] + 0, g[4])
      found = 1
    }
    if (!found) judge(g[1], g[2], g[3] + 0, g[4])
  }
  md = out ".md"
  print "# " gpu ", " date "\n" > md
  print "Written by `scripts/gpu-check.sh`: " machines ".\n" > md
  print "| | |\n|---|---|\n" facts_md > md
  printf "## Bars: %d pass, %d fail, %d not measured\n\n", count["pass"], count["fail"], count["not measured"] > md
  print "| bar | measured | goal | | |\n|---|---|---|---|---|\n" bars_md > md
  print "## Measurements\n" > md
  print "| case | by | median | 10 % | 90 % | TFLOP/s | GB/s | |\n|---|---|---|---|---|---|---|---|\n" table_md > md
  if (skips_md != "") print "Left out:\n\n" skips_md > md
  if (golden_md != "") print "## Recorded cases: largest deviations\n\n" golden_md > md
  json = out ".json"
  print "{\n\"facts\": {\n" facts_json "\n},\n\"bars\": [\n" bars_json "\n],\n\"measurements\": [\n" lines "\n]\n}" > json
}' "$logs/measurements"
