#!/usr/bin/env python3
"""What two workers and a learner of one model cost in memory, with private and with mapped weights.

    python3 bench/memory.py VOLLEY OUT.json

Writes a checkpoint of the shape of Qwen3-0.6B (bfloat16, random weights) and starts real processes on
it, one after the other, twice: once where the cache cannot be used, once with an empty one. A process
is measured a little after its weights are ready: `rss` counts shared pages in every process, `pss`
divides them among those who map them, so that its sum is what the processes cost together. Loading
times include starting the process and hashing the checkpoint; a learner has loaded when its memory no
longer changes, since it transposes private weights without a word."""
import json
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "hidden_act": "silu", "tie_word_embeddings": True, "eos_token_id": 509, "dtype": "bfloat16",
}
# A tiny tokenizer: words do not matter here, and ids that it does not know have no text.
TOKENIZER = os.path.join(os.path.dirname(__file__), "../tests/fixtures/qwen3-tiny")
RECIPE = """name = "memory"
model = "{model}"
environment = "arithmetic"
compute = "bf16"
[train]
steps = 1
groups_per_step = 1
group_size = 2
[workers]
count = 1
slots = 1
[evaluation]
instances = 1
"""
READY_WITHIN_S = 300
SETTLE_S = 3


def shapes():
    hidden, ffn, layers = (CONFIG[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    width = CONFIG["head_dim"]
    q, kv = width * CONFIG["num_attention_heads"], width * CONFIG["num_key_value_heads"]
    yield "model.embed_tokens.weight", [CONFIG["vocab_size"], hidden]
    yield "model.norm.weight", [hidden]
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", [hidden]
        yield at + "post_attention_layernorm.weight", [hidden]
        yield at + "self_attn.q_norm.weight", [width]
        yield at + "self_attn.k_norm.weight", [width]
        yield at + "self_attn.q_proj.weight", [q, hidden]
        yield at + "self_attn.k_proj.weight", [kv, hidden]
        yield at + "self_attn.v_proj.weight", [kv, hidden]
        yield at + "self_attn.o_proj.weight", [hidden, q]
        yield at + "mlp.gate_proj.weight", [ffn, hidden]
        yield at + "mlp.up_proj.weight", [ffn, hidden]
        yield at + "mlp.down_proj.weight", [hidden, ffn]


def write_checkpoint(folder):
    os.makedirs(folder)
    for name in os.listdir(TOKENIZER):
        if name.startswith(("tokenizer", "chat_template", "generation_config")):
            shutil.copy(os.path.join(TOKENIZER, name), folder)
    with open(folder + "/config.json", "w") as file:
        json.dump(CONFIG, file)
    header, at = {}, 0
    for name, shape in shapes():
        end = at + 2 * (shape[0] if len(shape) == 1 else shape[0] * shape[1])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = random.Random(1)
    # Magnitudes of 1/64 to 1/32, of both signs; norms are one.
    values = [sign | 0x3C80 | fraction for sign in (0, 0x8000) for fraction in range(128)]
    block = struct.pack("<" + "H" * (1 << 20), *noise.choices(values, k=1 << 20))
    with open(folder + "/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            if len(entry["shape"]) == 1:
                file.write(b"\x80\x3f" * ((end - begin) // 2))
                continue
            left = end - begin
            while left:
                shift = 2 * noise.randrange(1 << 20)
                part = (block[shift:] + block[:shift])[:left]
                file.write(part)
                left -= len(part)
    return os.path.getsize(folder + "/model.safetensors")


class Process:
    """A role whose words are read while it runs."""

    def __init__(self, command, env):
        self.lines, self.begun = [], time.monotonic()
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        stdin=subprocess.DEVNULL, text=True)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stderr:
            self.lines.append((time.monotonic() - self.begun, line.rstrip()))

    def packings(self, count):
        """Waits until the process has said that often where its packed weights are."""
        while time.monotonic() - self.begun < READY_WITHIN_S and self.process.poll() is None:
            said = [(at, line) for at, line in self.lines if "packed weights are" in line]
            if len(said) >= count:
                return said
            time.sleep(0.02)
        raise SystemExit("not ready:\n" + "\n".join(line for _, line in self.lines[-20:]))

    def settled(self):
        """Waits until its memory no longer changes; returns the time of the last change."""
        last, at = 0, time.monotonic() - self.begun
        while (now := time.monotonic() - self.begun) < at + SETTLE_S:
            with open(f"/proc/{self.process.pid}/statm") as file:
                pages = int(file.read().split()[1])
            if abs(pages - last) > 256:
                last, at = pages, now
            time.sleep(0.05)
        return at

    def memory(self):
        found = {}
        with open(f"/proc/{self.process.pid}/smaps_rollup") as file:
            for line in file.readlines()[1:]:
                key, kib = line.split()[:2]
                found[key.rstrip(":")] = int(kib)
        with open(f"/proc/{self.process.pid}/status") as file:
            found |= {"Peak": int(line.split()[1]) for line in file if line.startswith("VmHWM:")}
        mib = lambda *keys: round(sum(found[key] for key in keys) / 1024)
        return {"peak_rss_mib": mib("Peak"), "rss_mib": mib("Rss"), "pss_mib": mib("Pss"), "anonymous_mib": mib("Anonymous"),
                "private_mib": mib("Private_Clean", "Private_Dirty"),
                "shared_mib": mib("Shared_Clean", "Shared_Dirty")}

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def begin_run(volley, scratch, model, env):
    """A run directory, as `volley train` makes it; the run itself is not wanted."""
    recipe, run = scratch + "/recipe.toml", scratch + "/run"
    with open(recipe, "w") as file:
        file.write(RECIPE.format(model=model))
    train = Process([volley, "train", recipe, "--run-dir", run], env)
    while not os.path.exists(run + "/run.json"):
        if train.process.poll() is not None:
            raise SystemExit("no run:\n" + "\n".join(line for _, line in train.lines))
        time.sleep(0.1)
    train.process.send_signal(signal.SIGINT)
    train.process.wait()
    return run


def measure(volley, scratch, model, cache):
    env = {**os.environ, "VOLLEY_CACHE_DIR": cache, "XDG_RUNTIME_DIR": scratch, "VOLLEY_LOG": "info", "NO_COLOR": "1"}
    run = begin_run(volley, scratch, model, {**env, "VOLLEY_CACHE_DIR": "/dev/null"})
    started = [Process([volley, "coordinator", "--data-dir", scratch + "/data", "--max-workers", "0"], env)]
    try:
        while not os.path.exists(scratch + "/data/cluster.json"):
            time.sleep(0.1)
        worker = [volley, "worker", "--cluster", scratch + "/data", "--model", model, "--slots", "1",
                  "--compute", "bf16"]
        learner = [volley, "learner", "--cluster", scratch + "/data", "--run-dir", run]
        loads = {}

        def start(name, command, count):
            process = Process(command, env)
            started.append(process)
            said = process.packings(count)
            ready = process.settled() if name.startswith("learner") else said[-1][0]
            weights = [line.split("packed weights are ", 1)[1].replace(scratch, "…") for _, line in said]
            loads[name] = {"load_s": round(ready, 2), "weights": weights}
            return process

        # The learner last: the workers have nothing to play before, so all that they hold is the model.
        roles = [start("worker 1", worker, 1), start("worker 2", worker, 1)]
        time.sleep(SETTLE_S)
        two = [process.memory() for process in roles]
        roles.append(start("learner", learner, 2))
        three = [process.memory() for process in roles]
        roles.pop().stop()
        start("learner again", learner, 2)
    finally:
        for process in reversed(started):
            process.stop()
    total = lambda found: {key: sum(memory[key] for memory in found) for key in ("rss_mib", "pss_mib")}
    names = ["worker 1", "worker 2", "learner"]
    return {"loads": loads,
            "two_workers": {**dict(zip(names, two)), "sum": total(two)},
            "two_workers_and_learner": {**dict(zip(names, three)), "sum": total(three)}}


def main():
    volley, out = os.path.abspath(sys.argv[1]), sys.argv[2]
    result = {"machine": platform.platform(), "cores": os.cpu_count(), "compute": "bf16"}
    with tempfile.TemporaryDirectory() as scratch:
        model = scratch + "/model"
        result["checkpoint_mib"] = round(write_checkpoint(model) / 2**20)
        for kind in ("private", "mapped"):
            folder = f"{scratch}/{kind}"
            os.makedirs(folder)
            # What cannot be a directory refuses the cache.
            cache = "/dev/null" if kind == "private" else folder + "/cache"
            result[kind] = measure(volley, folder, model, cache)
            print(json.dumps({kind: result[kind]}, indent=1), flush=True)
    with open(out, "w") as file:
        json.dump(result, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
