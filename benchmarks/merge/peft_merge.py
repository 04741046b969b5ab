"""The usual way, as its documentation shows it: load the base, load the adapter, merge_and_unload, save."""

from __future__ import annotations

import sys


def main() -> None:
    """peft_merge.py BASE ADAPTER OUT: in fp16, the base's own dtype."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out, max_shard_size="1GB")


if __name__ == "__main__":
    main()
