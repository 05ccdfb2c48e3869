"""Prints configurations as transformers writes them, one JSON object per line, with what it reads
back from each: `python3 configs.py > 5.jsonl`. The lines of the versions 4.57.1 and 5.23.0 are in
tests/fixtures/configs.jsonl, which shared/engine/tests/config_files.rs compares with the engine.

A line has `made_by`, `what` (the options), `config` (the file), and either `refused` (a word that the
refusal must contain) or `expect`: sizes, window of each layer, and the rotary frequencies of each
kind of layer as the library's own rotary embedding has them.
"""

import copy
import json
import tempfile
import warnings

import transformers
from transformers import AutoConfig

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

V5 = int(transformers.__version__.split(".")[0]) >= 5
SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)


def rope(theta=None, **scaling):
    """Options of a rotary embedding for this version's class."""
    options = {} if theta is None else {"rope_theta": theta}
    if V5:
        options = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **options, **scaling}}
    elif scaling:
        options["rope_scaling"] = scaling
    return options


def frequencies(config, model_type):
    """Those of each kind of layer."""
    from transformers.models.gemma3 import modeling_gemma3
    from transformers.models.llama import modeling_llama

    if model_type != "gemma3_text":
        inverse = modeling_llama.LlamaRotaryEmbedding(config).inv_freq
        return {"full_attention": inverse.tolist(), "sliding_attention": inverse.tolist()}
    if V5:
        embedding = modeling_gemma3.Gemma3RotaryEmbedding(config)
        kinds = ["full_attention", "sliding_attention"]
        present = [kind for kind in kinds if hasattr(embedding, f"{kind}_inv_freq")]
        return {kind: getattr(embedding, f"{kind}_inv_freq").tolist() for kind in present}
    local = copy.deepcopy(config)
    local.rope_theta, local.rope_scaling = config.rope_local_base_freq, {"rope_type": "default"}
    of = lambda config: modeling_gemma3.Gemma3RotaryEmbedding(config).inv_freq.tolist()
    return {"full_attention": of(config), "sliding_attention": of(local)}


def read_back(directory):
    """What the library makes of a file."""
    config = AutoConfig.from_pretrained(directory)
    whole, config = config, config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    by_kind = frequencies(config, config.model_type)
    heads = config.num_attention_heads
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tied": bool(config.tie_word_embeddings if config is whole or V5 else whole.tie_word_embeddings),
        "scalar": getattr(config, "query_pre_attn_scalar", None),
        "windows": [config.sliding_window if kind == "sliding_attention" else None for kind in kinds],
        "frequencies": {kind: by_kind[kind] for kind in sorted(set(kinds))},
    }


def line(what, config, refused=None):
    """One line, for a file's text or a configuration that writes itself."""
    with tempfile.TemporaryDirectory() as directory:
        if isinstance(config, dict):
            with open(f"{directory}/config.json", "w") as file:
                json.dump(config, file)
        elif config.to_full:
            config.to_json_file(f"{directory}/config.json", use_diff=False)
        else:
            config.save_pretrained(directory)
        written = json.load(open(f"{directory}/config.json"))
        written.pop("to_full", None)
        result = {"made_by": f"transformers {transformers.__version__}", "what": what, "config": written}
        if refused is None:
            json.dump(written, open(f"{directory}/config.json", "w"))
            result["expect"] = read_back(directory)
        else:
            result["refused"] = refused
    print(json.dumps(result, separators=(",", ":")))


def made(cls, architecture, what, refused=None, full=False, **options):
    config = getattr(transformers, cls)(**{**SIZES, **options})
    config.architectures = [architecture]
    config.to_full = full
    line(f"{architecture}: {what}", config, refused)


def plain(cls, architecture, head_dim):
    def of(what, refused=None, **options):
        made(cls, architecture, what, refused, **{**head_dim, **rope(), **options})

    of("as it is")
    of("every key written", full=True)
    of("head_dim of its own", head_dim=16)
    of("one key head per head", num_key_value_heads=None)
    of("one key head", num_key_value_heads=1)
    of("tied", tie_word_embeddings=True)
    of("untied", tie_word_embeddings=False)
    of("another base", **rope(1e6))
    of("a whole number as base", **rope(500000))
    of("llama3", **rope(5e5, **LLAMA3))
    of("linear", **rope(1e4, rope_type="linear", factor=4.0))
    of("one end token", eos_token_id=7)
    of("end tokens", eos_token_id=[7, 9])
    of("another epsilon", rms_norm_eps=1e-5)
    of("swish", hidden_act="swish")
    of("sliding window that is off", use_sliding_window=False, sliding_window=128)
    of("whole heads are rotated", partial_rotary_factor=1.0)
    of("half of each head is rotated", "partial_rotary_factor", partial_rotary_factor=0.5)
    of("yarn", "yarn", **rope(1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=128))
    of("dynamic", "dynamic", **rope(1e4, rope_type="dynamic", factor=4.0))
    ones = [1.0] * 4
    of("longrope", "longrope", **rope(1e4, rope_type="longrope", short_factor=ones, long_factor=ones,
                                      factor=2.0, original_max_position_embeddings=128))
    of("another activation", "hidden_act", hidden_act="gelu")
    if cls != "LlamaConfig":
        of("sliding windows", "sliding", use_sliding_window=True, sliding_window=16, max_window_layers=2)
        of("layer types", layer_types=["full_attention"] * 4)
    if cls != "Qwen2Config":
        of("biases", "attention_bias", attention_bias=True)
    if cls == "LlamaConfig":
        of("biases of the feed-forward", "mlp_bias", mlp_bias=True)


def gemma():
    def of(what, refused=None, **options):
        made("Gemma3TextConfig", "Gemma3ForCausalLM", what, refused, **{"head_dim": 8, **options})

    def ropes(**full):
        kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2}
        if V5:
            return {**kinds, "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6, **full},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}
        return {**kinds, "rope_scaling": full}

    of("as it is")
    of("every key written", full=True)
    of("a short window", sliding_window=4)
    of("a window longer than the context", sliding_window=100_000)
    of("pattern", sliding_window_pattern=2)
    of("layer types", layer_types=["sliding_attention", "full_attention"] * 2)
    of("no sliding layer", layer_types=["full_attention"] * 4)
    of("linear", **ropes(rope_type="linear", factor=8.0))
    of("llama3", **ropes(**LLAMA3))
    of("untied", tie_word_embeddings=False)
    of("another scale", query_pre_attn_scalar=168)
    of("yarn", "yarn", **ropes(rope_type="yarn", factor=4.0, original_max_position_embeddings=128))
    of("soft cap of scores", "attn_logit_softcapping", attn_logit_softcapping=50.0)
    of("soft cap of logits", "final_logit_softcapping", final_logit_softcapping=30.0)
    of("both directions", "use_bidirectional_attention", use_bidirectional_attention=True)
    of("biases", "attention_bias", attention_bias=True)


def with_images():
    def of(what, refused=None, full=False, **options):
        text = transformers.Gemma3TextConfig(**{**SIZES, "head_dim": 8, **options})
        config = transformers.Gemma3Config(text_config=text.to_dict())
        config.architectures = ["Gemma3ForConditionalGeneration"]
        config.to_full = full
        line(f"Gemma3ForConditionalGeneration: {what}", config, refused)

    of("as it is")
    of("every key written", full=True)
    of("a short window", sliding_window=4)
    of("soft cap of logits", "final_logit_softcapping", final_logit_softcapping=30.0)


def others():
    for cls, architecture in [("MistralConfig", "MistralForCausalLM"), ("Gemma2Config", "Gemma2ForCausalLM"),
                              ("GraniteConfig", "GraniteForCausalLM"), ("Olmo2Config", "Olmo2ForCausalLM"),
                              ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"), ("CohereConfig", "CohereForCausalLM"),
                              ("Phi3Config", "Phi3ForCausalLM"), ("MixtralConfig", "MixtralForCausalLM")]:
        options = {"pad_token_id": 0, "head_dim": 8} if cls != "Phi3Config" else {"pad_token_id": 0}
        made(cls, architecture, "as it is", architecture, **options)


def by_hand():
    """Files that no longer are written like this, but are around."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    line("a Gemma 3 of transformers 4.50", {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
        "text_config": text, "transformers_version": "4.50.0.dev0", "torch_dtype": "bfloat16"})
    old = {**SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
           "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    del old["num_key_value_heads"]
    line("a Llama of transformers 4.28", old)
    line("a Llama with nulls", {**old, "head_dim": None, "num_key_value_heads": None, "rope_scaling": None,
                                "rope_theta": 10000.0, "eos_token_id": None})
    line("a Llama with the older name of a scaling", {
        **old, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}})
    line("a Llama 3.2", {**old, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 8,
                         "num_key_value_heads": 2, "mlp_bias": False, "attention_bias": False,
                         "tie_word_embeddings": True})


plain("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8})
plain("Qwen2Config", "Qwen2ForCausalLM", {})
plain("LlamaConfig", "LlamaForCausalLM", {})
gemma()
with_images()
others()
by_hand()
