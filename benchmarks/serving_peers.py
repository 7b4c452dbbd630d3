"""What the serving engine is compared with, each as a step that says how long it took: transformers, PEFT, llama.cpp, and memory.

Times are CPU seconds of one decode step. Knows nothing of our engine.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_peer import write_adapter, write_model

READER = """
#include <stddef.h>
typedef long long v8 __attribute__((vector_size(64)));
long long read_all(const v8 *p, size_t n) {  /* four streams at once: the most one core gets here */
  v8 s[4] = {}; size_t q = n / 4;
  for (size_t i = 0; i < q; i++) for (int k = 0; k < 4; k++) s[k] += p[k * q + i];
  v8 t = s[0] + s[1] + s[2] + s[3]; return t[0] + t[3] + t[7];
}
"""
Step = Callable[[], float]  # gives the CPU seconds of what is compared
Prompts = Sequence[Sequence[int]]  # as many tokens in each


def transformers_step(folder: Path, prompts: Prompts) -> Step:
    """`generate` of 16 rows: six tokens against two, so that reading the prompt falls out."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
    ids = torch.tensor(prompts)

    def spent(count: int) -> float:
        since = time.thread_time()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return time.thread_time() - since

    def step() -> float:
        with torch.inference_mode():
            return (spent(6) - spent(2)) / 4

    return step


def peft_step(folder: Path, adapters: Sequence[Path], prompts: Prompts) -> Step:
    """One step of PEFT's mixed batch (`adapter_names`), each row its own adapter, bfloat16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, DynamicCache

    bare: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    model: Any = PeftModel.from_pretrained(bare, adapters[0], adapter_name="a0", autocast_adapter_dtype=False)
    for n in range(1, len(adapters)):
        model.load_adapter(adapters[n], f"a{n}", autocast_adapter_dtype=False)
    model.to(torch.bfloat16).eval()
    names, one = [f"a{n}" for n in range(len(adapters))], torch.full((len(adapters), 1), 7)
    with torch.inference_mode():
        filled = bare(torch.tensor(prompts), past_key_values=DynamicCache(), use_cache=True).past_key_values

    def step() -> float:
        with torch.inference_mode():
            if more := filled.get_seq_length() - len(prompts[0]):
                filled.crop(-more)
            since = time.thread_time()
            model(input_ids=one, past_key_values=filled, use_cache=True, adapter_names=names)
            return time.thread_time() - since

    return step


def memory_step(work: Path) -> tuple[Step, int]:
    """Reads 256 MiB once: the bound of a step that reads every weight once."""
    source, library = work / "read.c", work / "read.so"
    source.write_text(READER)
    subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    read = ctypes.CDLL(str(library)).read_all
    read.argtypes, read.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_longlong
    size = 256 << 20
    room = np.ones(size + 64, dtype=np.uint8)
    begin = room.ctypes.data + -room.ctypes.data % 64

    def step() -> float:
        since = time.thread_time()
        read(begin, (room.size - 64) // 64)  # `room` has to live as long as the step
        return time.thread_time() - since

    return step, size


class LlamaCpp:
    """llama.cpp in a process of its own, in a python that has it."""

    def __init__(self, python: str, folder: Path, adapters: Sequence[Path], work: Path) -> None:
        """Convert the model and its adapters into `work` and load them."""
        config = json.loads((folder / "config.json").read_text())
        write_model(folder, work / "base.gguf")
        files = [work / f"adapter-{n}.gguf" for n in range(len(adapters))]
        for adapter, file in zip(adapters, files, strict=True):
            write_adapter(adapter, config, file)
        script = Path(__file__).with_name("llama_peer.py")
        command = [python, str(script), str(work / "base.gguf"), *map(str, files)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._child.stdout is None or self._child.stdout.readline() != "ready\n":
            sys.exit("couldn't start llama.cpp: see above; leave out --llama to go without")

    def ask(self, what: str) -> float:
        """The CPU seconds of one step of this kind."""
        if not (self._child.stdin and self._child.stdout):
            raise RuntimeError("llama.cpp was not started")
        self._child.stdin.write(what + "\n")
        self._child.stdin.flush()
        return float(self._child.stdout.readline())

    def close(self) -> None:
        """End the process."""
        if self._child.stdin:
            self._child.stdin.close()
        self._child.wait()
