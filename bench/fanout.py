#!/usr/bin/env python3
"""The fan-out beside Ray and Monarch, alternating: rollouts that cost nothing, so that what remains is
the price of the way.

    python3 bench/fanout.py VOLLEY PEERS OUT.json [ROUNDS] [LANE,LANE...]

PEERS is a folder with `ray_bench.py` and `monarch_bench.py`, which take the same flags as
`volley bench fanout` and print `JSON {...}`; this Python must be able to import ray and monarch.
Both talk in clear between the processes of a machine. Every lane is run ROUNDS times (default 3), each
system once in a round, in turn. OUT keeps every line and the medians."""
import json
import os
import statistics
import subprocess
import sys

# What a result is worth when something dies: the comparison is of one operation, not of one promise.
GUARANTEES = {
    "volley": "rollout and verdict synced before they are told, bytes synced, each accepted once",
    "ray": "retried when a worker dies; nothing durable",
    "ray batch": "as ray, a whole batch at a time",
    "monarch": "none: the caller sees an error",
    "monarch batch": "none: the caller sees an error",
}
# Processes of one machine may use that they are: results by file, bulk by Unix sockets.
QUIC = {"VOLLEY_SAME_HOST": "results"}
FAR = {"VOLLEY_SAME_HOST": "off"}

# lane -> [(who, flags)]; the first word of who is the program.
LANES = {
    "throughput 4.6 KB": [
        ("volley", ["throughput", "--w", "2", "--n", "100000"]),
        ("volley (bulk by QUIC)", ["throughput", "--w", "2", "--n", "100000"]),
        ("volley (client far away)", ["throughput", "--w", "2", "--n", "50000"]),
        ("ray", ["throughput", "--mode", "actors", "--w", "2", "--n", "10000"]),
        ("ray batch", ["throughput", "--mode", "batch", "--w", "2", "--n", "50000"]),
        ("monarch", ["throughput", "--mode", "call", "--w", "2", "--n", "10000"]),
        ("monarch batch", ["throughput", "--mode", "batch", "--w", "2", "--n", "50000"]),
    ],
    "throughput 73.7 KB": [
        ("volley", ["throughput", "--w", "2", "--n", "8000", "--t", "8192"]),
        ("volley (bulk by QUIC)", ["throughput", "--w", "2", "--n", "8000", "--t", "8192"]),
        ("ray batch", ["throughput", "--mode", "batch", "--w", "2", "--n", "2000", "--t", "8192"]),
        ("monarch batch", ["throughput", "--mode", "batch", "--w", "2", "--n", "2000", "--t", "8192"]),
    ],
    "16 workers": [
        ("volley", ["throughput", "--w", "16", "--n", "100000", "--k", "128"]),
        ("ray batch", ["throughput", "--mode", "batch", "--w", "16", "--n", "10000", "--k", "64"]),
        ("monarch batch", ["throughput", "--mode", "batch", "--w", "16", "--n", "10000", "--k", "64"]),
    ],
    "64 workers": [
        ("volley", ["throughput", "--w", "64", "--n", "100000", "--k", "64"]),
        ("ray batch", ["throughput", "--mode", "batch", "--w", "64", "--n", "10000", "--k", "64"]),
    ],
    "latency": [
        ("volley", ["latency", "--w", "1", "--n", "1000", "--k", "32"]),
        ("ray", ["latency", "--w", "1", "--n", "1000"]),
        ("monarch", ["latency", "--w", "1", "--n", "1000"]),
    ],
    "startup": [
        ("volley", ["startup", "--w", "2"]),
        ("ray", ["startup", "--w", "2"]),
        ("monarch", ["startup", "--w", "2"]),
    ],
    "32 more workers": [
        ("volley", ["addworkers", "--w", "32", "--k", "4"]),
        ("ray", ["addworkers", "--w", "32"]),
        ("monarch", ["addworkers", "--w", "32"]),
    ],
    "64 MiB to 8 workers": [
        ("volley", ["broadcast", "--w", "8", "--k", "32"]),
        ("volley (bulk by QUIC)", ["broadcast", "--w", "8", "--k", "32"]),
        ("ray", ["broadcast", "--w", "8"]),
        ("monarch", ["broadcast", "--w", "8"]),
    ],
    "kill -9": [
        ("volley", ["kill", "--w", "4", "--n", "800", "--k", "4"]),
        ("ray", ["kill", "--w", "4", "--n", "800"]),
    ],
    "memory": [
        ("volley", ["memory", "--w", "8", "--k", "32"]),
        ("ray", ["memory", "--w", "8"]),
    ],
    "waiting": [
        ("volley", ["queue", "--n", "1000000"]),
        ("ray", ["queue", "--mode", "blocked", "--n", "50000"]),
    ],
}


def measure(who, flags, volley, peers):
    program = who.split()[0]
    env = dict(os.environ)
    if program == "volley":
        command = [volley, "bench", "fanout", *flags, "--json"]
        env |= QUIC if "by QUIC" in who else FAR if "far away" in who else {}
    else:
        command = [sys.executable, f"{peers}/{program}_bench.py", *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)
    except subprocess.TimeoutExpired:
        return {"who": who, "error": "no result in 180 s"}
    lines = [line.removeprefix("JSON ") for line in done.stdout.splitlines() if line.startswith(("JSON {", "{"))]
    if not lines:
        return {"who": who, "error": (done.stderr or done.stdout)[-300:]}
    told = json.loads(lines[-1])
    for process in told["result"].get("procs", []):
        if isinstance(process, list):
            # Its command line names this machine's folders.
            process.pop(1)
    return {"who": who, "params": told["params"], "result": told["result"], "load1": told["machine"]["load1"]}


def medians(lines):
    """The median of every number, for each who."""
    found = {}
    for line in lines:
        if "result" in line:
            found.setdefault(line["who"], []).append(line["result"])

    def merge(values):
        first = values[0]
        if isinstance(first, dict):
            return {key: merge([value[key] for value in values if key in value]) for key in first}
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            numbers = [value for value in values if isinstance(value, (int, float))]
            return round(statistics.median(numbers), 4)
        return first

    return {who: merge(results) for who, results in found.items()}


def main():
    volley, peers, out = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    chosen = sys.argv[5].split(",") if len(sys.argv) > 5 else list(LANES)
    lanes = {}
    for lane in chosen:
        lines = []
        for _ in range(rounds):
            for who, flags in LANES[lane]:
                lines.append(measure(who, flags, volley, peers))
                print(lane, json.dumps(lines[-1])[:400], flush=True)
        lanes[lane] = {"median": medians(lines), "runs": lines}
    told = {"cpus": os.cpu_count(), "rounds": rounds, "guarantees": GUARANTEES, "lanes": lanes}
    with open(out, "w") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


main()
