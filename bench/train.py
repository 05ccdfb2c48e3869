#!/usr/bin/env python3
"""Trains a recipe with several seeds and keeps the curves as JSON.

    python3 bench/train.py VOLLEY RECIPE SEEDS OUT.json      e.g. target/release/volley
                                                             examples/routing/recipe.toml 0,1,2

Each run is one `volley train --json`: all roles as processes of this machine. The figures are its
last event; `load_1m` tells how busy the machine was when a run ended."""
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile


def run(volley, recipe, seed):
    with tempfile.TemporaryDirectory() as scratch:
        command = [volley, "train", recipe, "--seed", str(seed), "--run-dir", scratch + "/run", "--json"]
        lines = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    reports = [event["report"] for event in events if event["event"] == "step"]
    final = {key: value for key, value in events[-1].items() if key not in ("adapter", "report", "run_dir")}
    return {
        "seed": seed,
        "load_1m": round(os.getloadavg()[0], 2),
        "finished": final,
        "reward": [round(report["reward_mean"], 4) for report in reports],
        "train_ms": [report["train_ms_total"] for report in reports],
    }


def main():
    volley, recipe, seeds, out = sys.argv[1:5]
    runs = []
    for seed in seeds.split(","):
        runs.append(run(volley, recipe, int(seed)))
        print(json.dumps(runs[-1]["finished"]), flush=True)
    keys = ["heldout_before", "heldout_after", "heldout_sampled_before", "heldout_sampled_after", "train_seconds"]
    result = {
        "recipe": recipe,
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine(), "system": platform.system()},
        "median": {key: statistics.median(run["finished"][key] for run in runs) for key in keys},
        "runs": runs,
    }
    with open(out, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


main()
