"""Log-probabilities of token sequences under an adapter, as transformers and PEFT compute them.

Usage: peft_check.py MODEL_DIR ADAPTER_DIR [OUT_DIR] < {"sequences": [[ids]]} > {"logprobs": [[nats]]}

The logprobs of a sequence are those of its tokens from the second on. Everything is float32. With
OUT_DIR, PEFT saves the adapter there again, and gradients.safetensors beside it holds the
derivatives of the sum of all negative logprobs by its tensors, under the names of PEFT's files.
`peft_check.py --probe` only tells, by its exit status, whether the libraries are installed.
"""

import json
import sys


def main() -> int:
    try:
        import torch
        from peft import PeftModel
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        print(f"not installed: {error.name}", file=sys.stderr)
        return 69
    if sys.argv[1:] == ["--probe"]:
        return 0
    model_dir, adapter_dir, *out_dir = sys.argv[1:]
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=True).eval()
    logprobs = []
    for ids in json.load(sys.stdin)["sequences"]:
        tokens = torch.tensor(ids)
        logits = model(tokens[None, :-1]).logits[0]
        chosen = logits.double().log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
        logprobs.append(chosen.tolist())
        if out_dir:
            (-chosen.sum()).backward()
    json.dump({"logprobs": logprobs}, sys.stdout)
    if out_dir:
        model.save_pretrained(out_dir[0])
        learned = {
            name.replace(".default", ""): value.grad
            for name, value in model.named_parameters()
            if value.requires_grad
        }
        save_file(learned, f"{out_dir[0]}/gradients.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
