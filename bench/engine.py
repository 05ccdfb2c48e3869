#!/usr/bin/env python3
"""Sets the engine beside transformers + PEFT and llama.cpp, alternating in one run.

    python3 bench/engine.py VOLLEY HARNESSES OUT.json [ROUNDS] [SHAPE,...]

HARNESSES is a folder with hf_bench.py, llama_bench.py and adamw_bench.py, which print one JSON object
per part (the arguments are in `peer_commands` below); this Python must have torch, transformers, peft,
gguf and llama-cpp-python. Every round runs every program once, so that all of them meet the same
machine. OpenMP programs run with both waiting policies and the better one counts. `ratio` is ours over the best
peer's, of medians; `cpu_ratio` the same per second of processor time. Times are turned over, so that
more is always better."""
import json
import os
import statistics
import subprocess
import sys
import time

THREADS = "2"
FORMATS = {"q06b": ["bf16"], "small": ["f32", "bf16"]}


def lines(command, **env):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env={**os.environ, "THREADS": THREADS, **env})
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def volley(binary, shape, dtype, parts, new="32", repeat="3"):
    command = [binary, "policy", "bench", "--shape", shape, "--compute", dtype, "--threads", THREADS,
               "--parts", ",".join(parts), "--new", new, "--repeat", repeat, "--json"]
    return {line["part"]: line for line in lines(command)}


def ours(binary, shape, dtype):
    new = "16" if shape == "q06b" else "64"
    found = {}
    decode = ["decode1", "decode8", "decode32", "decode32-adapter1", "decode32-adapters32"]
    for part, line in volley(binary, shape, dtype, decode, new).items():
        found[part] = (line["tok_s"], line["tok_per_cpu_s"])
    repeat = "1" if shape == "q06b" else "5"
    for part, line in volley(binary, shape, dtype, ["prefill256", "prefill2048", "train"], repeat=repeat).items():
        found[part] = (line["tok_s"], line["tok_per_cpu_s"])
    line = volley(binary, shape, dtype, ["adamw"], repeat="7")["adamw"]
    found["adamw"] = (1e3 / line["wall_ms"], 1e3 / line["cpu_ms"])
    return found


def transformers(folder, shape, dtype, policy):
    env = {"OMP_WAIT_POLICY": policy, "PROMPT": "64", "NEW": "16" if shape == "q06b" else "64"}
    env |= {"REP": "1", "MB": "1"} if shape == "q06b" else {"REP": "3"}
    script = [sys.executable, folder + "/hf_bench.py", shape, dtype]
    found = {}
    for line in lines(script + ["decode1", "decode8", "decode32", "prefill", "train"], **env):
        if line["part"].startswith("decode"):
            found[line["part"]] = (line["decode_tok_s"], line["decode_tok_per_cpu_s"])
        elif line["part"] == "prefill":
            part = {256: "prefill256", 2048: "prefill2048"}[line["tokens"]]
            found[part] = (line["tok_s"], line["tok_per_cpu_s"])
        else:
            found["train"] = (line["tok_s"], line["batch"] * line["seq"] / line["cpu_s"])
    return found


def llama(folder, shape, dtype, policy, scratch):
    weights = f"{scratch}/{shape}-{dtype}.gguf"
    env = {"OMP_WAIT_POLICY": policy, "PROMPT": "64", "NEW": "16" if shape == "q06b" else "64"}
    found = {}
    for line in lines([sys.executable, folder + "/llama_bench.py", shape, dtype, weights], **env):
        found[f"decode{line['batch']}"] = (line["decode_tok_s"], line["decode_tok_per_cpu_s"])
        if line["batch"] == 32:
            found["prefill2048"] = (line["prefill_tok_s"], line["prefill_tok_per_cpu_s"])
    return found


def adamw(folder, shape, policy):
    done = lines([sys.executable, folder + "/adamw_bench.py", shape, "16"], OMP_WAIT_POLICY=policy)
    sums = [[sum(line[key][unit] for key in ("clip", "step", "publish_bf16"))
             for unit in ("best_wall_ms", "best_cpu_ms")] for line in done]
    best = min(sums)
    return {"adamw": (1e3 / best[0], 1e3 / best[1])}


def peer_commands(folder, shape, dtype, scratch):
    for policy in ("ACTIVE", "PASSIVE"):
        yield f"transformers+PEFT {policy.lower()}", lambda p=policy: transformers(folder, shape, dtype, p)
        yield f"llama.cpp {policy.lower()}", lambda p=policy: llama(folder, shape, dtype, p, scratch)
        yield f"torch AdamW {policy.lower()}", lambda p=policy: adamw(folder, shape, p)


def compare(runs):
    """Medians per program and part; the best peer of each part; the ratios."""
    median = {}
    for name, rounds in runs.items():
        parts = {part for found in rounds for part in found}
        median[name] = {part: [round(statistics.median(found[part][i] for found in rounds if part in found), 3)
                               for i in (0, 1)] for part in sorted(parts)}
    table = {}
    for part, mine in median["volley"].items():
        reference = "decode32" if part.startswith("decode32-") else part
        peers = {name: found[reference] for name, found in median.items() if name != "volley" and reference in found}
        row = {"volley": mine[0], "volley_per_cpu_s": mine[1]}
        if part.startswith("decode32-"):
            row["of_decode_without"] = round(mine[0] / median["volley"]["decode32"][0], 3)
        elif peers:
            best = max(peers, key=lambda name: peers[name][0])
            row |= {"best_peer": best, "peer": peers[best][0], "ratio": round(mine[0] / peers[best][0], 3),
                    "cpu_ratio": round(mine[1] / max(found[1] for found in peers.values()), 3)}
        table[part] = row
    return median, table


def busy_host(binary):
    """Decoding of the small model while a second program keeps both cores busy."""
    parts = ["decode1", "decode8", "decode32"]
    quiet = volley(binary, "small", "f32", parts, "64", "20")
    rivals = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(int(THREADS))]
    time.sleep(1)
    loaded = volley(binary, "small", "f32", parts, "64", "20")
    for rival in rivals:
        rival.kill()
        rival.wait()
    return {part: {"quiet_tok_s": quiet[part]["tok_s"], "busy_tok_s": loaded[part]["tok_s"],
                   "of_fair_share": round(loaded[part]["tok_s"] / (quiet[part]["tok_s"] / 2), 3)} for part in parts}


def new_version(binary, rounds):
    """Decode steps of a thousand episodes of the small model while a new version arrives."""
    result = {}
    for dtype in FORMATS["small"]:
        runs = [volley(binary, "small", dtype, ["swap"])["swap"] for _ in range(rounds)]
        keys = ("quiet_step_ms_p50", "quiet_step_ms_max", "step_ms_p50", "step_ms_max", "longest_over_median")
        result[dtype] = {key: statistics.median(run[key] for run in runs) for key in keys}
        result[dtype] |= {"episodes": runs[0]["episodes"], "worst_longest_over_median": max(run["longest_over_median"] for run in runs)}
    return result


def main():
    binary, folder, out = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    shapes = sys.argv[5].split(",") if len(sys.argv) > 5 else list(FORMATS)
    scratch = os.path.dirname(os.path.abspath(out))
    result = {"cpus": os.cpu_count(), "threads": int(THREADS), "rounds": rounds, "load1_start": os.getloadavg()[0],
              "isa": lines([binary, "policy", "bench", "--shape", "small", "--parts", "adamw", "--json"])[0]["isa"],
              "busy_host": busy_host(binary), "new_version": new_version(binary, rounds), "shapes": {}}
    for shape in shapes:
        for dtype in FORMATS[shape]:
            runs = {}
            for _ in range(rounds):
                runs.setdefault("volley", []).append(ours(binary, shape, dtype))
                for name, command in peer_commands(folder, shape, dtype, scratch):
                    runs.setdefault(name, []).append(command())
            median, table = compare(runs)
            result["shapes"][f"{shape} {dtype}"] = {"table": table, "medians": median}
            print(shape, dtype, json.dumps(table, indent=1), flush=True)
    result["load1_end"] = os.getloadavg()[0]
    with open(out, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


main()
