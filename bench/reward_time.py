#!/usr/bin/env python3
"""Time to a held-out reward on the routing recipe, beside a loop written by hand, alternating.

    python3 bench/reward_time.py VOLLEY GRPO_TORCH.py OUT.json [SEEDS]

GRPO_TORCH is a program that trains the same model on the same task with torch, transformers and PEFT
(arguments MODEL TASK LR STEPS GROUPS SAMPLES RANK) and prints `STEP reward R kept K t SECONDS` and
`eval STEP greedy G T1 S t SECONDS`; this Python must have what it needs. Both make 60 steps of 24
groups of 8; evaluation is not counted in either."""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

MODEL = "examples/models/tiny-base"


def volley(binary, seed):
    with tempfile.TemporaryDirectory() as scratch:
        command = [binary, "train", "examples/routing/recipe.toml", "--seed", str(seed), "--run-dir", scratch + "/run", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    final = json.loads(done.stdout.splitlines()[-1])
    return {"train_seconds": final["train_seconds"], "sampled": final["heldout_sampled_after"], "greedy": final["heldout_after"]}


def torch(script):
    # Without these two the allocator returns and fetches every large tensor's memory: slower.
    env = {**os.environ, "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
    command = [sys.executable, script, MODEL, "routing", "7e-4", "60", "24", "8", "16"]
    text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, env=env).stdout
    seconds = float(re.search(r"^60 reward .* t (\d+)", text, re.M).group(1))
    greedy, sampled = re.search(r"^eval 60 greedy (\S+) T1 (\S+)", text, re.M).groups()
    return {"train_seconds": seconds, "sampled": float(sampled), "greedy": float(greedy)}


def main():
    binary, script, out = sys.argv[1:4]
    seeds = [int(seed) for seed in (sys.argv[4] if len(sys.argv) > 4 else "0,1,2").split(",")]
    rows = []
    for seed in seeds:
        rows.append({"seed": seed, "volley": volley(binary, seed), "torch": torch(script), "load_1m": round(os.getloadavg()[0], 2)})
        print(json.dumps(rows[-1]), flush=True)
    median = {who: {key: statistics.median(row[who][key] for row in rows) for key in rows[0][who]} for who in ("volley", "torch")}
    ratio = round(median["torch"]["train_seconds"] / median["volley"]["train_seconds"], 2)
    with open(out, "w") as file:
        json.dump({"recipe": "examples/routing/recipe.toml", "cpus": os.cpu_count(), "median": median, "times_faster": ratio, "runs": rows}, file, indent=1)
        file.write("\n")


main()
