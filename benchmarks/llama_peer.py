"""llama.cpp as a peer: writes a model and PEFT adapters as GGUF files, and decodes with them in a process of its own.

    python benchmarks/llama_peer.py MODEL.gguf ADAPTER.gguf..      (with a python that has llama-cpp-python)

Reads lines "base N" (one row, N tokens), "batch N" (16 rows of the base in one batch) or "turns N" (each adapter in turn,
N tokens each: different adapters never share a batch there) and answers the CPU seconds of one token for every row.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

PROMPT = 64
ROWS = 16
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_model(folder: Path, to: Path) -> None:
    """The Llama model in `folder` in float16, without a vocabulary: tokens go in as ids."""
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_string("tokenizer.ggml.model", "none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(1)
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = _permuted(name, tensor.float().numpy(), config)
        writer.add_tensor(_name(name), values if values.ndim == 1 else values.astype(np.float16))
    _write(writer)


def write_adapter(folder: Path, config: dict[str, int], to: Path) -> None:
    """The PEFT adapter in `folder` as a GGUF LoRA in float16."""
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    writer = gguf.GGUFWriter(to, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", json.loads((folder / "adapter_config.json").read_text())["lora_alpha"])
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        path, _, kind = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        values = tensor.float().numpy()
        values = _permuted(path, values, config) if kind == "B" else values
        writer.add_tensor(f"{_name(path + '.weight')}.lora_{kind.lower()}", values.astype(np.float16))
    _write(writer)


def _write(writer: object) -> None:
    writer.write_header_to_file()  # type: ignore[attr-defined]
    writer.write_kv_data_to_file()  # type: ignore[attr-defined]
    writer.write_tensors_to_file()  # type: ignore[attr-defined]
    writer.close()  # type: ignore[attr-defined]


def _name(name: str) -> str:
    path = name.removesuffix(".weight")
    if path in OUTER:
        return OUTER[path] + ".weight"
    _, _, number, rest = path.split(".", 3)
    return f"blk.{number}.{NAMES[rest]}.weight"


def _permuted(name: str, values, config):  # noqa: ANN001, ANN202
    """Rows of q and k in the order of llama.cpp's rotary positions."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, count in heads.items():
        if part in name:
            n = config[count]
            shaped = values.reshape(n, 2, values.shape[0] // n // 2, *values.shape[1:])
            return shaped.swapaxes(1, 2).reshape(values.shape)
    return values


def serve(model_file: str, adapter_files: list[str]) -> None:
    import ctypes

    import llama_cpp as api

    silent = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(model_file.encode(), api.llama_model_default_params())
    adapters = [api.llama_adapter_lora_init(model, file.encode()) for file in adapter_files]
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 4096, 2048, 512, ROWS
    params.n_threads = params.n_threads_batch = 1
    context = api.llama_init_from_model(model, params)
    batch = api.llama_batch_init(ROWS * PROMPT, 0, 1)

    def use(adapter) -> None:  # noqa: ANN001
        if adapter is None:
            api.llama_set_adapters_lora(context, None, 0, None)
        else:
            kind = api.llama_adapter_lora_p_ctypes
            api.llama_set_adapters_lora(context, (kind * 1)(adapter), 1, (ctypes.c_float * 1)(1.0))

    def decode(tokens: list[tuple[int, int, int, bool]]) -> None:  # (token, position, row, whether logits are wanted)
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, row
            batch.logits[i] = wanted
        if api.llama_decode(context, batch):
            raise SystemExit("couldn't decode")
        api.llama_get_logits(context)  # waits for the result

    def fill(rows: range) -> None:
        for row in rows:
            api.llama_memory_seq_rm(api.llama_get_memory(context), row, -1, -1)
            decode([(100 + row + i, i, row, i == PROMPT - 1) for i in range(PROMPT)])

    print("ready", flush=True)
    for line in sys.stdin:
        what, _, count = line.partition(" ")
        steps = int(count)
        use(None)
        fill(range(ROWS if what == "batch" else 1))
        began = time.process_time()
        if what == "turns":
            spent = 0.0
            for adapter in adapters:  # what the prompt's keys hold does not change the time
                use(adapter)
                api.llama_memory_seq_rm(api.llama_get_memory(context), 0, PROMPT, -1)
                began = time.process_time()
                for i in range(steps):
                    decode([(7, PROMPT + i, 0, True)])
                spent += time.process_time() - began
            print(spent / steps, flush=True)
            continue
        rows = ROWS if what == "batch" else 1
        for i in range(steps):
            decode([(7, PROMPT + i, row, True) for row in range(rows)])
        print((time.process_time() - began) / steps, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
