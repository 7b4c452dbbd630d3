"""lm-eval measures a model through our API and gets what it would get from the model itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from contrib.models import tiny_folder
from node.serving.engine.rows import Work
from node.serving.engine.runner import open_runner
from node.serving.engine.sampling import score_rows
from tests.support.live_engine import Live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason="lm-eval is not installed; its tree is large: pip install 'lm-eval[api]' into an environment of its own",
    ),
]

ROWS = [
    {"question": "We the people of the United", "choices": [" States", " zzqq"], "label": 0},
    {"question": "Congress shall make no", "choices": [" xxyy", " law"], "label": 1},
    {"question": "The right of the people to", "choices": [" be", " qqjj"], "label": 0},
]
CHOICES = """
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
TEXT = """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


def likelihood(question: str, choice: str) -> float:
    """Sum of the log-probabilities of `choice` behind `question`, by the model without the API."""
    runner = open_runner(tiny_folder(), base="ba" * 32, rows=1, slots=1)
    ids = list((question + choice).encode())
    row = runner.open(ids, 0, "").row
    (logits,) = runner.step([Work(row=row, ids=ids, want="all")])
    assert isinstance(logits, torch.Tensor)
    start = len(question.encode())
    return sum(one.logprob or 0.0 for one in score_rows(logits[:-1], ids[1:])[start - 1 :])


def test_lm_eval_measures_what_the_model_says(live: Live, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    for name, task in (("choices", CHOICES), ("text", TEXT)):
        (tmp_path / f"{name}.yaml").write_text(task.replace("FILE", str(data)))
    arguments = {
        "model": "base",
        "base_url": f"http://127.0.0.1:{live.port}/v1/completions",
        "tokenizer": str(tiny_folder()),
        "tokenizer_backend": "huggingface",
        "tokenized_requests": "True",
        "num_concurrent": "2",
        "max_length": "512",
    }
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "local-completions", "--batch_size", "3"),
            *("--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())),
            *("--tasks", "local_choices,local_text", "--include_path", str(tmp_path)),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(results.read_text())["results"]
    assert "acc,none" in measured["local_choices"]
    assert "exact_match,none" in measured["local_text"]
    (samples,) = (tmp_path / "out").rglob("samples_local_choices_*.jsonl")
    hits = 0
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        row = sample["doc"]
        theirs = [float(answer[0][0]) for answer in sample["resps"]]
        ours = [likelihood(row["question"], choice) for choice in row["choices"]]
        assert theirs == pytest.approx(ours, abs=1e-3), row
        hits += ours.index(max(ours)) == row["label"]
    assert measured["local_choices"]["acc,none"] == pytest.approx(hits / len(ROWS))
