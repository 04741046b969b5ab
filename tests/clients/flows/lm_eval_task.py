"""Tasks of lm-eval in KoBEST's form, with rows of our own, and what a model scores in them.

    python flows/lm_eval_task.py KIND JSON     KIND: lm-eval's --model; JSON: its --model_args

prints one line of JSON: each task's metrics, and each request's answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROWS = """\
{"question": "The capital of France is", "choices": ["Paris", "Rome"], "answer": 0}
{"question": "Two and two make", "choices": ["five", "four"], "answer": 1}
{"question": "비가 와서 나는", "choices": ["우산을 썼다", "모자를 벗었다"], "answer": 0}
{"question": "고래는 바다에 산다. 질문: 고래는 산에 사는가? 답변:", "choices": ["예", "아니오"], "answer": 1}
"""
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
GENERATION = """\
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
KINDS = {"choice": CHOICE, "generation": GENERATION}


def evaluate(kind: str, model: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's `metrics` of a task of KINDS, and the `answers` to its requests in order."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.write_text(ROWS, encoding="utf-8")
        task = TASK.format(name="here", rows=rows) + KINDS[kind]
        (Path(folder) / "here.yaml").write_text(task)
        made = lm_eval.simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=["here"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
        )
    samples = sorted(made["samples"]["here"], key=lambda sample: int(sample["doc_id"]))
    answers = [response for sample in samples for response in sample["filtered_resps"]]
    metrics = {name: value for name, value in made["results"]["here"].items() if "," in name}
    return {"metrics": metrics, "answers": answers}


if __name__ == "__main__":
    made = {kind: evaluate(kind, sys.argv[1], json.loads(sys.argv[2])) for kind in KINDS}
    print(json.dumps({"scores": made}, default=str))
