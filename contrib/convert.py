"""Turns a GGUF file into safetensors, config and tokenizer: `python -m contrib.convert FILE.gguf FOLDER`.

Run as a child process by `contrib.models`, so that its gigabyte of memory goes back and nothing it prints mixes with the
caller's output. Works offline. Dequantising is elementwise float32 arithmetic: the same file gives the same tensors
everywhere, and the base digest is what members compare.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def convert(source: Path, out: Path) -> None:
    """Write the model of the GGUF file `source` to the folder `out` in float32, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The weights are plain float32 by now, but transformers still calls the model quantized and would refuse to save it.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    os.environ.update(OFFLINE)  # before transformers is imported, which reads it once
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
